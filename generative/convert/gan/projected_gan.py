"""Checkpoints of the Projected GAN authors' code (autonomousvision/projected-gan): FastGAN generators, discriminators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource, UnknownKeysError, split_by_module
from generative.convert.files.options import REQUIRED, ConstructorOptions
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
GENERATOR_RESOLUTIONS = (128, 256, 512, 1024)
CONDITIONAL_RESOLUTIONS = (128, 256)
PROJECTIONS: dict[int, Projection] = {0: "none", 1: "channel", 2: "scale"}


class Options(ConstructorOptions):
    """Arguments of one constructor of the official code, or nested ones of it."""

    repository = "Projected GAN"

    def take_switch(self, name: str, default: bool) -> bool:
        """Take an option that the official code asks for its truth only (``cond=1``)."""
        return bool(self.take(name, default, int, bool, type(None)))

    def take_group(self, name: str) -> Options:
        """Take a mapping of options, empty by default."""
        return Options(f"{self.owner}.{name}", self.take(name, {}))


def build_generator(options: Options) -> FastGANGenerator:
    """Build our generator from the arguments of ``networks_fastgan.Generator``."""
    options.drop("w_dim", "mapping_kwargs")  # for StyleGAN's interface
    is_conditional = options.take_switch("cond", False)
    resolutions = CONDITIONAL_RESOLUTIONS if is_conditional else GENERATOR_RESOLUTIONS
    reason = " (the official code cannot run it)"
    synthesis = options.take_group("synthesis_kwargs")
    c_dim = options.take("c_dim", 0, int)
    arguments = {
        "image_size": options.choose("img_resolution", 256, resolutions, reason),
        "z_dim": options.take("z_dim", 256, int),
        "num_classes": synthesis.take("num_classes", OFFICIAL_CLASSES, int) if is_conditional else max(c_dim, 1),
        "channels": options.take("ngf", 128, int),
        "conditional": is_conditional,
        "lite": synthesis.take_switch("lite", False),
        "image_channels": options.choose("img_channels", 3, (3, 1)),
    }
    synthesis.finish()
    options.finish()
    return FastGANGenerator(**arguments)


def build_projector(options: Options) -> FeatureProjector | None:
    """Build our projector from the arguments of ``F_RandomProj``; None without projection, where there is nothing to build."""
    options.drop("class_", "im_res")  # a comment of the parity files; ignored by the official code
    arguments = {
        "in_channels": tuple(options.take("in_channels", REQUIRED, list, tuple)),
        "out_channels": options.take("cout", 64, int),
        "expand": options.take_switch("expand", True),
        "projection": options.choose("proj_type", 2, PROJECTIONS),
    }
    derived = mixed_channels(arguments["out_channels"], arguments["expand"])
    for name, expected in zip(("ccm_channels", "csm_channels"), derived, strict=True):
        stated = options.take(name, None, list, tuple, type(None))
        if stated is not None and arguments["projection"] != "none" and tuple(stated) != expected:
            raise UserError(f"projector option {name} of Projected GAN is {list(expected)} for its cout and expand, got {stated}")
    options.finish()
    return None if arguments["projection"] == "none" else FeatureProjector(**arguments)


def build_heads(options: Options) -> MultiScaleHeads:
    """Build our heads from the arguments of ``MultiScaleD`` and, nested by name, of ``SingleDisc`` or ``SingleDiscCond``."""
    options.drop("class_", "proj_type", "cout", "expand", "im_res")  # taken and ignored by the official code
    is_conditional = options.take_switch("cond", False)
    head = options.take_group("SingleDiscCond" if is_conditional else "SingleDisc")
    channels = tuple(options.take("channels", REQUIRED, list, tuple))
    arguments = {
        "channels": channels,
        "nominal_sizes": tuple(options.take("resolutions", REQUIRED, list, tuple)),
        "conditional": is_conditional,
        "num_heads": options.choose("num_discs", 1, (1, 2, 3, 4)),
        "separable": options.take_switch("separable", False),
        "patch": options.take_switch("patch", False),
        "width": head.take("ndf", None, int, type(None)),
        "end_size": head.take("end_sz", 8, int),
        "stem": head.take_switch("head", False),
    }
    if is_conditional:
        arguments["num_classes"] = head.take("c_dim", OFFICIAL_CLASSES, int)
        arguments["map_channels"] = head.take("cmap_dim", 64, int)
        arguments["embedding_dim"] = head.take("embedding_dim", 128, int)
    head.finish()
    options.finish()
    return MultiScaleHeads(**arguments)


def build_discriminator(options: Options) -> ProjectedDiscriminator:
    """Build our discriminator from the arguments of ``ProjectedDiscriminator``."""
    options.drop("class_", "diffaug", "img_channels")  # the objective augments
    backbone = options.take_group("backbone_kwargs")
    backbone.drop("im_res")
    is_conditional = backbone.take_switch("cond", False)
    image_size = options.take("img_resolution", PRETRAINED_RESOLUTION, int)
    c_dim = options.take("c_dim", OFFICIAL_CLASSES if is_conditional else 1, int)
    arguments = {
        "image_size": image_size,
        "num_classes": max(c_dim, 1),
        "conditional": is_conditional,
        "feature_resolution": PRETRAINED_RESOLUTION if options.take_switch("interp224", True) else image_size,
        "projection": backbone.choose("proj_type", 2, PROJECTIONS),
        "projection_channels": backbone.take("cout", 64, int),
        "expand": backbone.take_switch("expand", True),
        "num_heads": backbone.choose("num_discs", 1, (1, 2, 3, 4)),
        "separable": backbone.take_switch("separable", False),
        "patch": backbone.take_switch("patch", False),
    }
    backbone.finish()
    options.finish()
    with torch.device("meta"):  # its weights come from the checkpoint, so none are read or drawn
        network = ProjectedDiscriminator(**arguments)
    return network.to_empty(device="cpu")


def check_augmentation(options: Options) -> None:
    """Check the options of ``DiffAugment``, which has no weights."""
    known = {"color", "translation", "cutout"}
    policy = options.take("policy", "", str)
    unknown = [name for name in policy.split(",") if name and name not in known]
    if unknown:
        raise UserError(f"diffaug option policy of Projected GAN names {unknown[0]!r}; known: {', '.join(sorted(known))}")
    options.finish()


def build_module(name: str, options: Any) -> ModelMixin | None:
    """Build one module by what its name begins with; None for one without weights."""
    taken = Options(name, options)
    if name == "D" or name.startswith("discriminator"):
        is_whole = name == "D" or "backbone_kwargs" in taken.options or taken.options.get("class_") == "ProjectedDiscriminator"
        return build_discriminator(taken) if is_whole else build_heads(taken)
    if name in ("G", "G_ema") or name.startswith("generator"):
        return build_generator(taken)
    if name.startswith("projector"):
        return build_projector(taken)
    if name.startswith("diffaug"):
        check_augmentation(taken)
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
