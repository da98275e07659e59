"""Checkpoints of openai/guided-diffusion: ADM's U-Nets and its upsamplers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import (
    FLAG,
    NUMBER,
    NUMBERS,
    POSITIVE,
    REQUIRED,
    UNUSED,
    Argument,
    Constructor,
    Kind,
    one_of,
    optional,
)
from generative.convert.base import OfficialSource
from generative.convert.diffusion.adm_diffusion import (
    DIFFUSION_ARGUMENTS,
    REPOSITORY,
    formulation,
    official_sampler,
)
from generative.convert.diffusion.adm_keys import TRUNK_KEYS, UNET_PATTERNS, our_key, our_tensor, read_options
from generative.convert.keys import names_of
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm import ADMUNet

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

HEADS = Kind(
    "a positive whole number or -1",
    lambda value: value == -1 or POSITIVE.fits(value),
    lambda value: None if value == -1 else value,
)
# Arguments that a U-Net and a classifier have alike.
TRUNK_ARGUMENTS = {
    "image_size": Argument("sample_size", REQUIRED, POSITIVE, untold='{"image_size": N}'),
    "in_channels": Argument("in_channels", REQUIRED, POSITIVE),
    "model_channels": Argument("model_channels", REQUIRED, POSITIVE),
    "num_res_blocks": Argument("num_res_blocks", REQUIRED, POSITIVE),
    "attention_resolutions": Argument(None, REQUIRED, NUMBERS),
    "dropout": Argument("dropout", 0, NUMBER),
    "channel_mult": Argument("channel_mult", (1, 2, 4, 8), NUMBERS),
    "conv_resample": Argument("conv_resample", True, FLAG),
    "dims": Argument(None, 2, one_of((2,), ": images have two dimensions")),
    "use_checkpoint": UNUSED,
    "use_fp16": UNUSED,
    "num_heads": Argument("num_heads", 1, POSITIVE),
    "num_head_channels": Argument("num_head_channels", -1, HEADS, untold='{"num_head_channels": N} or, with -1, "num_heads"'),
    "use_scale_shift_norm": Argument("use_scale_shift_norm", False, FLAG),
    "resblock_updown": Argument("resblock_updown", False, FLAG),
    "use_new_attention_order": Argument("use_new_attention_order", False, FLAG),
}
UNET_ARGUMENTS = {
    **TRUNK_ARGUMENTS,
    "out_channels": Argument(None, REQUIRED, POSITIVE),
    "num_classes": Argument(None, None, optional(POSITIVE)),
    "num_heads_upsample": Argument("num_heads_upsample", -1, HEADS),
    "learn_sigma": Argument(None, None, optional(FLAG)),
    "diffusion_steps": Argument(None, 1000, POSITIVE),
    **DIFFUSION_ARGUMENTS,
}
OWN_KEYS = (*TRUNK_KEYS, "out.2.weight", "output_blocks.0.0.in_layers.2.weight")


def attention_sizes(image_size: int, factors: tuple[float, ...], num_levels: int) -> tuple[int, ...]:
    """Heights at which attention acts, of factors of downsampling; those that no level has do nothing, there as here."""
    return tuple(image_size // 2**level for level in range(num_levels) if 2**level in factors)


class ADMSource(OfficialSource):
    """U-Nets as ``UNetModel`` of openai/guided-diffusion builds them."""

    name = "adm"
    repository = REPOSITORY
    is_upsampler: ClassVar[bool] = False
    constructor: ClassVar[Constructor] = Constructor("UNetModel", REPOSITORY, UNET_ARGUMENTS)
    # What no shape tells of the published files, by what shapes do tell: width, multipliers, blocks, attention
    # (the flags of their README).
    published: ClassVar[tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]] = (
        (
            (192, [1, 2, 3, 4], 3, [2, 4, 8]),
            {
                "image_size": 64,
                "num_head_channels": 64,
                "use_new_attention_order": True,
                "dropout": 0.1,
                "noise_schedule": "cosine",
            },
        ),
        ((256, [1, 1, 2, 3, 4], 2, [4, 8, 16]), {"image_size": 128, "num_heads": 4, "num_head_channels": -1}),
        ((256, [1, 1, 2, 2, 4, 4], 2, [8, 16, 32]), {"image_size": 256, "num_head_channels": 64}),
        ((256, [0.5, 1, 1, 2, 2, 4, 4], 2, [16, 32, 64]), {"image_size": 512, "num_head_channels": 64}),
    )

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our U-Net from official arguments.

        Args:
            config: Arguments of the official class; options of ``create_gaussian_diffusion`` and of sampling may be among them
                and are checked.

        Returns:
            ``{"model": ADMUNet}``.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        values = self.constructor.values(config)
        self.formulation(config)
        num_classes = values["num_classes"]
        sizes = attention_sizes(values["image_size"], values["attention_resolutions"], len(values["channel_mult"]))
        network = ADMUNet(
            **self.constructor.read(config),
            attention_resolutions=sizes,
            num_classes=1 if num_classes is None else num_classes,
            class_conditional=num_classes is not None,
            learn_sigma=self.learns_sigma(config),
            low_resolution_size=self.low_resolution_size(config),
        )
        return {"model": network}

    def learns_sigma(self, config: Mapping[str, Any]) -> bool:
        """Whether the network predicts a variance: its output channels tell.

        Raises:
            UserError: If they are neither as many as the input's nor twice as many, or ``learn_sigma`` says otherwise.
        """
        values = self.constructor.values(config)
        channels, stated = values["in_channels"], values["learn_sigma"]
        wanted = {False: (channels,), True: (2 * channels,), None: (channels, 2 * channels)}[stated]
        if values["out_channels"] not in wanted:
            given = f" with in_channels={channels}" + ("" if stated is None else f" and learn_sigma={stated}")
            raise self.constructor.refuse("out_channels", values["out_channels"], " or ".join(map(str, wanted)), given)
        return values["out_channels"] == 2 * channels

    def low_resolution_size(self, config: Mapping[str, Any]) -> int | None:
        """Size of the images that an upsampler reads; None for other networks."""
        return None

    def formulation(self, config: Mapping[str, Any]) -> GaussianDiffusion:
        """What the network was trained under.

        Args:
            config: Official options.
        """
        values = self.constructor.values(config)
        return formulation(values, values["diffusion_steps"], self.learns_sigma(config))

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; attention's convolutions of one pixel become linear layers.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our U-Net.

        Raises:
            UserError: If a key is unknown.
        """
        names = names_of(self.constructor.owner, state, partial(our_key, head=UNET_PATTERNS))
        return {name: our_tensor(key, state[key]) for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes; ``image_size`` and ``num_head_channels`` are None where the network is none of the published
            ones. None for another layout.
        """
        if any(key not in state for key in OWN_KEYS):
            return None
        options = read_options(state)
        read, out_channels = options["in_channels"], state["out.2.weight"].shape[0]
        # An upsampler reads twice the channels that it makes.
        is_upsampler = read % 2 == 0 and out_channels in (read // 2, read) and (out_channels != read or read == 2 * 3)
        if is_upsampler != self.is_upsampler:
            return None
        shape = (options["model_channels"], options["channel_mult"], options["num_res_blocks"], options["attention_resolutions"])
        told = next((flags for known, flags in self.published if known == shape), {})
        labels = state.get("label_emb.weight")
        return {
            **options,
            "in_channels": read // 2 if is_upsampler else read,
            "out_channels": out_channels,
            "num_classes": None if labels is None else labels.shape[0],
            "image_size": None,
            "num_head_channels": None,
            **told,
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the official sampler.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        trained = self.formulation(config)
        sampler, num_steps = official_sampler(self.constructor.values(config), trained)
        defaults = {"num_inference_steps": num_steps}
        return self.pipeline_class()(networks["model"], sampler, sampling_defaults=defaults, formulation=trained)

    def pipeline_class(self) -> type[DiffusionImagePipeline]:
        """Whose pipeline it is."""
        from pipelines.diffusion import DiffusionImagePipeline

        return DiffusionImagePipeline


class ADMUpsamplerSource(ADMSource):
    """Upsamplers as ``SuperResModel`` of openai/guided-diffusion builds them: ``in_channels`` are those of one image."""

    name = "adm_upsampler"
    is_upsampler = True
    constructor = Constructor(
        "SuperResModel", REPOSITORY, {**UNET_ARGUMENTS, "small_size": Argument(None, None, optional(POSITIVE))}
    )
    published = (
        (
            (192, [1, 1, 2, 2, 4, 4], 2, [8, 16, 32]),
            {"image_size": 256, "small_size": 64, "num_heads": 4, "num_head_channels": -1},
        ),
        ((192, [1, 1, 2, 2, 4, 4], 2, [16, 32]), {"image_size": 512, "small_size": 128, "num_head_channels": 64}),
    )

    def low_resolution_size(self, config: Mapping[str, Any]) -> int | None:
        """Size of the images that are read: the scripts' ``small_size``, a quarter of the image's unless it is given."""
        values = self.constructor.values(config)
        return values["small_size"] or max(values["image_size"] // 4, 1)

    def pipeline_class(self) -> type[DiffusionImagePipeline]:
        """Whose pipeline it is: ``generative sample BASE --upsampler`` takes its folder."""
        from pipelines.upsampler import UpsamplerPipeline

        return UpsamplerPipeline
