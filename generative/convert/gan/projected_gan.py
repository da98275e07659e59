"""Checkpoints of the Projected GAN authors' code (autonomousvision/projected-gan): FastGAN generators, discriminators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import LIST, REQUIRED, TEXT, UNUSED, WHOLE, Argument, Constructor, Kind, one_of, optional
from generative.convert.base import OfficialSource, UnknownKeysError, split_by_module
from generative.convert.gan.projected_gan_keys import (
    NORM_TENSORS,
    TENSORS,
    backbone_pairs,
    module_places,
    recognise_discriminator,
    recognise_generator,
    recognise_heads,
    recognise_projector,
)
from generative.convert.gan.spectral import add_singular_values
from generative.core.errors import UserError
from generative.gan.fastgan import FastGANGenerator
from generative.gan.projected import FeatureProjector, Projection, mixed_channels
from generative.gan.projected_discriminator import PRETRAINED_RESOLUTION, ProjectedDiscriminator
from generative.gan.projected_heads import MultiScaleHeads
from generative.layers.efficientnet_lite import fold_tensors

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline

OFFICIAL_CLASSES = 1000  # the official embeddings' default, which its training script never changes
CANNOT_RUN = " (the official code cannot run it)"
GENERATOR_RESOLUTIONS = (128, 256, 512, 1024)
CONDITIONAL_RESOLUTIONS = (128, 256)
PROJECTIONS: dict[int, Projection] = {0: "none", 1: "channel", 2: "scale"}


REPOSITORY = "Projected GAN"
# What the official code asks for its truth only (``cond=1``).
SWITCH = Kind("True or False", lambda value: value is None or isinstance(value, int), bool)
CHANNELS = replace(LIST, convert=tuple)
GROUP = Argument(None, MappingProxyType({}))  # a mapping of options, which is read by a table of its own
GENERATOR = {
    "w_dim": UNUSED,  # this and the next are for StyleGAN's interface
    "mapping_kwargs": UNUSED,
    "cond": Argument("conditional", False, SWITCH),
    "img_resolution": Argument("image_size", 256, one_of(GENERATOR_RESOLUTIONS, CANNOT_RUN)),
    "img_channels": Argument("image_channels", 3, one_of((3, 1))),
    "z_dim": Argument("z_dim", 256, WHOLE),
    "c_dim": Argument(None, 0, WHOLE),
    "ngf": Argument("channels", 128, WHOLE),
    "synthesis_kwargs": GROUP,
}
CONDITIONAL_GENERATOR = GENERATOR | {
    "img_resolution": Argument("image_size", 256, one_of(CONDITIONAL_RESOLUTIONS, CANNOT_RUN)),
}
SYNTHESIS = {"lite": Argument("lite", False, SWITCH)}
CONDITIONAL_SYNTHESIS = SYNTHESIS | {"num_classes": Argument("num_classes", OFFICIAL_CLASSES, WHOLE)}
PROJECTOR = {
    "class_": UNUSED,  # a comment of the parity files
    "im_res": UNUSED,  # ignored by the official code
    "in_channels": Argument("in_channels", REQUIRED, CHANNELS),
    "cout": Argument("out_channels", 64, WHOLE),
    "expand": Argument("expand", True, SWITCH),
    "proj_type": Argument("projection", 2, one_of(PROJECTIONS)),
    "ccm_channels": Argument(None, None, optional(CHANNELS)),  # this and the next follow from ``cout`` and ``expand``
    "csm_channels": Argument(None, None, optional(CHANNELS)),
}
# What ``MultiScaleD`` takes, of the projections' kind or alone.
HEADS = {
    "cond": Argument("conditional", False, SWITCH),
    "num_discs": Argument("num_heads", 1, one_of((1, 2, 3, 4))),
    "separable": Argument("separable", False, SWITCH),
    "patch": Argument("patch", False, SWITCH),
}
ALONE = HEADS | {
    **dict.fromkeys(("class_", "proj_type", "cout", "expand", "im_res"), UNUSED),  # taken and ignored by the official code
    "channels": Argument("channels", REQUIRED, CHANNELS),
    "resolutions": Argument("nominal_sizes", REQUIRED, CHANNELS),
}
HEAD = {
    "ndf": Argument("width", None, optional(WHOLE)),
    "end_sz": Argument("end_size", 8, WHOLE),
    "head": Argument("stem", False, SWITCH),
}
CONDITIONAL_HEAD = HEAD | {
    "c_dim": Argument("num_classes", OFFICIAL_CLASSES, WHOLE),
    "cmap_dim": Argument("map_channels", 64, WHOLE),
    "embedding_dim": Argument("embedding_dim", 128, WHOLE),
}
BACKBONE = HEADS | {
    "im_res": UNUSED,
    "proj_type": Argument("projection", 2, one_of(PROJECTIONS)),
    "cout": Argument("projection_channels", 64, WHOLE),
    "expand": Argument("expand", True, SWITCH),
}
DISCRIMINATOR = {
    **dict.fromkeys(("class_", "diffaug", "img_channels"), UNUSED),  # the objective augments
    "img_resolution": Argument("image_size", PRETRAINED_RESOLUTION, WHOLE),
    "c_dim": Argument(None, None, optional(WHOLE)),
    "interp224": Argument(None, True, SWITCH),
    "backbone_kwargs": GROUP,
}


def constructor(owner: str, arguments: Mapping[str, Argument]) -> Constructor:
    """A table of the official code's for a module of a name."""
    return Constructor(owner, REPOSITORY, arguments)


def is_conditional(config: Any) -> bool:
    """Whether options ask for the class, which decides what else may be among them."""
    return isinstance(config, Mapping) and bool(config.get("cond", False))


def build_generator(name: str, config: Any) -> FastGANGenerator:
    """Build our generator from the arguments of ``networks_fastgan.Generator``."""
    conditional = is_conditional(config)
    table = constructor(name, CONDITIONAL_GENERATOR if conditional else GENERATOR)
    values = table.values(config)
    synthesis = constructor(f"{name}.synthesis_kwargs", CONDITIONAL_SYNTHESIS if conditional else SYNTHESIS)
    classes = {} if conditional else {"num_classes": max(values["c_dim"], 1)}
    return FastGANGenerator(**table.read(config), **synthesis.read(values["synthesis_kwargs"]), **classes)


def build_projector(name: str, config: Any) -> FeatureProjector | None:
    """Build our projector from the arguments of ``F_RandomProj``; None without projection, where there is nothing to build."""
    table = constructor(name, PROJECTOR)
    values, arguments = table.values(config), table.read(config)
    if arguments["projection"] == "none":
        return None
    derived = mixed_channels(arguments["out_channels"], arguments["expand"])
    for option, expected in zip(("ccm_channels", "csm_channels"), derived, strict=True):
        stated = values[option]
        if stated is not None and stated != expected:
            raise UserError(
                f"projector option {option} of Projected GAN is {list(expected)} for its cout and expand, got {list(stated)}"
            )
    return FeatureProjector(**arguments)


def build_heads(name: str, config: Any) -> MultiScaleHeads:
    """Build our heads from the arguments of ``MultiScaleD`` and, nested by name, of ``SingleDisc`` or ``SingleDiscCond``."""
    nested, head = ("SingleDiscCond", CONDITIONAL_HEAD) if is_conditional(config) else ("SingleDisc", HEAD)
    table = constructor(name, {**ALONE, nested: GROUP})
    own = constructor(f"{name}.{nested}", head).read(table.values(config)[nested])
    return MultiScaleHeads(**table.read(config), **own)


def build_discriminator(name: str, config: Any) -> ProjectedDiscriminator:
    """Build our discriminator from the arguments of ``ProjectedDiscriminator``."""
    table = constructor(name, DISCRIMINATOR)
    values = table.values(config)
    backbone = constructor(f"{name}.backbone_kwargs", BACKBONE).read(values["backbone_kwargs"])
    c_dim = values["c_dim"] if values["c_dim"] is not None else OFFICIAL_CLASSES if backbone["conditional"] else 1
    arguments = {
        **table.read(config),
        **backbone,
        "num_classes": max(c_dim, 1),
        "feature_resolution": PRETRAINED_RESOLUTION if values["interp224"] else values["img_resolution"],
    }
    with torch.device("meta"):  # its weights come from the checkpoint, so none are read or drawn
        network = ProjectedDiscriminator(**arguments)
    return network.to_empty(device="cpu")


def check_augmentation(name: str, config: Any) -> None:
    """Check the options of ``DiffAugment``, which has no weights."""
    known = {"color", "translation", "cutout"}
    policy = constructor(name, {"policy": Argument(None, "", TEXT)}).values(config)["policy"]
    unknown = [part for part in policy.split(",") if part and part not in known]
    if unknown:
        raise UserError(f"diffaug option policy of Projected GAN names {unknown[0]!r}; known: {', '.join(sorted(known))}")


def build_module(name: str, options: Any) -> ModelMixin | None:
    """Build one module by what its name begins with; None for one without weights."""
    if name == "D" or name.startswith("discriminator"):
        is_whole = isinstance(options, Mapping) and (
            "backbone_kwargs" in options or options.get("class_") == "ProjectedDiscriminator"
        )
        return build_discriminator(name, options) if name == "D" or is_whole else build_heads(name, options)
    if name in ("G", "G_ema") or name.startswith("generator"):
        return build_generator(name, options)
    if name.startswith("projector"):
        return build_projector(name, options)
    if name.startswith("diffaug"):
        check_augmentation(name, options)
        return None
    raise UserError(f"projected-gan has modules named generator, discriminator, projector, diffaug, G, D and G_ema, got {name!r}")


class ProjectedGANSource(OfficialSource):
    """Projected GAN: FastGAN generators, the random projections, the heads, and the whole discriminator with its backbone."""

    name = "projected-gan"
    repository = "autonomousvision/projected-gan"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official constructor arguments.

        Args:
            config: Arguments by module. A name that begins with ``generator`` (or is ``G``, ``G_ema``) is a FastGAN generator;
                with ``projector``, the projections alone; with ``discriminator``, a ``MultiScaleD``, or where it has
                ``backbone_kwargs`` (and as ``D``) a ``ProjectedDiscriminator``; with ``diffaug``, options only.

        Returns:
            Networks by module name.

        Raises:
            UserError: If a module or option is unknown or has no equal here.
        """
        if not config:
            raise UserError("projected-gan needs the options of at least one module, got none")
        built = {name: build_module(name, options) for name, options in config.items()}
        return {name: network for name, network in built.items() if network is not None}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict's tensors, and fold the backbone's norms.

        Args:
            module: Name of the module as in ``build``.
            state: Official tensors. Those of stages that the official generator builds and does not use are left out.
            network: Our network.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        places = module_places(network)
        pairs = backbone_pairs(state) if isinstance(network, ProjectedDiscriminator) else []
        backbone = [f"{conv}.weight" for conv, _ in pairs] + [f"{norm}.{name}" for _, norm in pairs for name in NORM_TENSORS]
        converted: dict[str, Tensor] = {}
        unknown = []
        for key, value in state.items():
            path, _, tensor = key.rpartition(".")
            ours, kind = places.get(path, (None, ""))
            if key in backbone:
                continue
            if path not in places or tensor not in TENSORS[kind]:
                unknown.append(key)
            elif ours is not None and (name := TENSORS[kind][tensor]) is not None:
                converted[f"{ours}.{name}"] = value[None] if tensor in ("weight_u", "weight_v") else value
        if unknown:
            raise UnknownKeysError(f"{module} of {self.name}", unknown)
        add_singular_values(converted, transposed=("project_in",))
        if isinstance(network, ProjectedDiscriminator):
            for name, (conv, norm) in zip(network.backbone.conv_names(), pairs, strict=True):
                keys = [f"{conv}.weight", *(f"{norm}.{tensor}" for tensor in NORM_TENSORS)]
                if all(key in state for key in keys):  # else the loader says which of ours is missing
                    converted |= fold_tensors([f"backbone.{name}"], [state[key] for key in keys])
        return converted

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Tensors of one network by official key, or of several by ``<module>/<key>``.

        Returns:
            What ``build`` takes; None if a part of it is of another layout.
        """
        parts = split_by_module(state)
        readers: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Any] | None]] = {
            "generator": recognise_generator,
            "discriminator": lambda tensors: recognise_discriminator(tensors) or recognise_heads(tensors),
            "projector": recognise_projector,
        }
        config: dict[str, Any] = {}
        for module, tensors in parts.items():
            found = {kind: options for kind, read in readers.items() if (options := read(tensors)) is not None}
            if len(found) != 1:
                return None
            config |= {module or kind: options for kind, options in found.items()}
        sizes = [options["img_resolution"] for options in config.values() if "img_resolution" in options]
        for options in config.values():
            if sizes and "interp224" in options:  # the training script's rule
                options |= {"img_resolution": sizes[0], "interp224": sizes[0] < PRETRAINED_RESOLUTION}
        return config or None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageGenerationPipeline:
        """Pipeline around the generator, its average where the snapshot has one.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If there is no generator.
        """
        from pipelines.gan import GANImagePipeline

        generators = {name: network for name, network in networks.items() if isinstance(network, FastGANGenerator)}
        if not generators:
            raise UserError(f"the checkpoint of {self.name} holds no generator, and nothing else makes images; give its G_ema")
        return GANImagePipeline(generator=generators.get("G_ema") or next(iter(generators.values())))
