"""Names in Projected GAN's checkpoints: where each official tensor goes, and what names and shapes tell of the options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from generative.gan.fastgan import BOTTOM_SIZE, EXCITATIONS, STAGE_WIDTHS, FastGANGenerator
from generative.gan.projected import NUM_SCALES, FeatureProjector
from generative.gan.projected_discriminator import HEAD_END_SIZE, ProjectedDiscriminator
from generative.gan.projected_heads import HEAD_WIDTHS, PATCH_START_SIZE, MultiScaleHeads
from generative.layers.efficientnet_lite import STAGES, TAPPED_STAGES

# Kind of module -> its official tensors -> ours; None is left out.
TENSORS: dict[str, dict[str, str | None]] = {
    "spectral": {"weight_orig": "weight", "weight_u": "spectral_norm.u", "weight_v": "spectral_norm.v", "bias": "bias"},
    "affine": {
        "weight": "gain",
        "bias": "bias",
        "running_mean": "running_mean",
        "running_var": "running_var",
        "num_batches_tracked": None,
    },
    "statistics": {"stored_mean": "running_mean", "stored_var": "running_var"},
    "plain": {"weight": "weight", "bias": "bias"},
}
# Stages up to this size are built officially whatever the images' size, and are idle beyond it.
ALWAYS_BUILT_SIZE = 256
# Official names of the parts of the pretrained network, and where the pieces of theirs begin that hold stages: the first part
# starts with a convolution, a norm and an activation. timm's newer releases have the activation inside the norm.
PRETRAINED = "feature_network.pretrained"
SCRATCH = "feature_network.scratch"
FIRST_STAGE = 3
FIRST_STAGE_NEWER = 2
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Place = tuple[str | None, str]
"""Our module's name, None for an idle one, and its kind in ``TENSORS``."""


def stage_places(block: str, ours: str | None, is_conditional: bool, lite: bool) -> Iterator[tuple[str, Place]]:
    """Official module -> ours, for one upsampling block of the generator."""
    layers = [("", 0)] if lite else [("1", 0), ("2", 1)]

    def place(name: str, kind: str) -> Place:
        return (None if ours is None else f"{ours}.{name}", kind)

    if is_conditional:
        for suffix, index in layers:
            yield f"{block}.conv{suffix}", place(f"convs.{index}", "spectral")
            yield f"{block}.bn{suffix}", place(f"norms.{index}.norm", "statistics")
            for part in ("gain", "bias"):
                yield f"{block}.bn{suffix}.{part}", place(f"norms.{index}.{part}", "spectral")
        if not lite:
            yield f"{block}.noise", place("injections.0", "plain")
        return
    # An official nn.Sequential: upsample, then conv, (noise,) norm, gated unit, once or twice.
    position = 1
    for _, index in layers:
        yield f"{block}.{position}", place(f"convs.{index}", "spectral")
        if not lite:
            yield f"{block}.{position + 1}", place(f"injections.{index}", "plain")
            position += 1
        yield f"{block}.{position + 1}", place(f"norms.{index}", "affine")
        position += 3


def generator_places(network: FastGANGenerator) -> Iterator[tuple[str, Place]]:
    """Official module -> ours, for the generator."""
    yield "synthesis.init.init.0", ("project_in", "spectral")
    yield "synthesis.init.init.1", ("norm_in", "affine")
    yield "synthesis.to_big", ("conv_out", "spectral")
    if network.config.conditional:
        yield "synthesis.embed", ("class_embedding", "plain")
    for size in STAGE_WIDTHS:
        if not BOTTOM_SIZE < size <= max(network.image_size, ALWAYS_BUILT_SIZE):
            continue
        is_idle = size > network.image_size
        yield from stage_places(
            f"synthesis.feat_{size}", None if is_idle else f"blocks.{size}", network.config.conditional, network.config.lite
        )
        if size in EXCITATIONS:
            for position, index in ((1, 1), (3, 2)):
                ours = None if is_idle else f"excitations.{size}.conv{index}"
                yield f"synthesis.se_{size}.main.{position}", (ours, "spectral")


def head_places(head: nn.Module, official: str, ours: str) -> Iterator[tuple[str, Place]]:
    """Official module -> ours, for one head."""
    position = 0
    if head.stem is not None:
        yield f"{official}.main.0", (f"{ours}.stem", "spectral")
        position = 2
    for index, block in enumerate(head.blocks):  # type: ignore[arg-type]
        place, outer = f"{ours}.blocks.{index}", f"{official}.main.{position + index}"
        inner = outer if block.patch_conv is None else f"{outer}.main.0"
        parts = ("depthwise", "pointwise") if block.separable else ("",)
        for part_index, part in enumerate(parts):
            yield f"{inner}.main.0.{part}".rstrip("."), (f"{place}.convs.{part_index}", "spectral")
        yield f"{inner}.main.1", (f"{place}.norm", "affine")
        if block.patch_conv is not None:
            yield f"{outer}.main.1", (f"{place}.patch_conv", "spectral")
            yield f"{outer}.main.2", (f"{place}.patch_norm", "affine")
    if head.class_embedding is None:
        yield f"{official}.main.{position + len(head.blocks)}", (f"{ours}.conv_out", "spectral")  # type: ignore[arg-type]
    else:
        yield f"{official}.cls", (f"{ours}.conv_out", "spectral")
        yield f"{official}.embed", (f"{ours}.class_embedding", "plain")
        yield f"{official}.embed_proj.0", (f"{ours}.class_projection", "plain")


def heads_places(network: MultiScaleHeads, official: str = "", ours: str = "") -> Iterator[tuple[str, Place]]:
    """Official module -> ours, for the heads; both names with a prefix."""
    for index, head in enumerate(network.heads):
        yield from head_places(head, f"{official}mini_discs.{index}", f"{ours}heads.{index}")


def projector_places(network: FeatureProjector, official: str = "", ours: str = "") -> Iterator[tuple[str, Place]]:
    """Official module -> ours, for the projections; both names with a prefix."""
    for index in range(NUM_SCALES):
        yield f"{official}layer{index}_ccm", (f"{ours}channel_mixers.{index}", "plain")
    for index in range(len(network.scale_mixers)):
        yield f"{official}layer{index}_csm.out_conv", (f"{ours}scale_mixers.{index}", "plain")


def module_places(network: nn.Module) -> dict[str, Place]:
    """Official module -> ours and its kind, for everything but the pretrained network, whose norms are folded."""
    if isinstance(network, FastGANGenerator):
        return dict(generator_places(network))
    if isinstance(network, MultiScaleHeads):
        return dict(heads_places(network))
    if isinstance(network, FeatureProjector):
        return dict(projector_places(network))
    assert isinstance(network, ProjectedDiscriminator)
    places = dict(heads_places(network.heads, "discriminator.", "heads."))
    if network.projector is not None:
        places |= dict(projector_places(network.projector, f"{SCRATCH}.", "projector."))
    return places


def backbone_pairs(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Official names of the pretrained network's convolutions, each with its norm, in the order in which they run.

    Args:
        state: Official tensors, which tell whether timm's release was an older or a newer one.
    """
    is_older = any(key.startswith(f"{PRETRAINED}.layer0.{FIRST_STAGE + 1}.") for key in state)
    pairs = [(f"{PRETRAINED}.layer0.0", f"{PRETRAINED}.layer0.1")]
    part, position = 0, FIRST_STAGE if is_older else FIRST_STAGE_NEWER
    for index, stage in enumerate(STAGES):
        convs = ("conv_dw", "conv_pw") if stage.expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        for block in range(stage.repeats):
            path = f"{PRETRAINED}.layer{part}.{position}.{block}"
            pairs += [(f"{path}.{conv}", f"{path}.bn{number + 1}") for number, conv in enumerate(convs)]
        position += 1
        if index in TAPPED_STAGES:
            part, position = part + 1, 0
    return pairs


def recognise_generator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the official ``Generator``, None if it is another network."""
    first, last = state.get("synthesis.init.init.0.weight_orig"), state.get("synthesis.to_big.weight_orig")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return None
    ngf = first.shape[1] // (2 * int(STAGE_WIDTHS[BOTTOM_SIZE]))
    sizes = [int(match[1]) for match in (re.match(r"synthesis\.feat_(\d+)\.", key) for key in state) if match]
    size = max(sizes, default=0)
    # Both 128 and 256 have the stage of 256; the last convolution tells which one is read.
    if size == ALWAYS_BUILT_SIZE and last.shape[1] == int(STAGE_WIDTHS[128] * ngf):
        size = 128
    embedding = state.get("synthesis.embed.weight")
    second_convs = ("synthesis.feat_8.5.weight_orig", "synthesis.feat_8.conv2.weight_orig")
    synthesis: dict[str, Any] = {"lite": not any(key in state for key in second_convs)}
    if embedding is not None:
        synthesis["num_classes"] = embedding.shape[0]
    return {
        "z_dim": first.shape[0],
        "c_dim": synthesis.get("num_classes", 0),
        "img_resolution": size,
        "img_channels": last.shape[0],
        "ngf": ngf,
        "cond": int(embedding is not None),
        "synthesis_kwargs": synthesis,
    }


def recognise_projector(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the official ``F_RandomProj`` without its pretrained network, None if it is another network."""
    mixers = [state.get(f"layer{index}_ccm.weight") for index in range(NUM_SCALES)]
    known = [mixer for mixer in mixers if mixer is not None and mixer.ndim == 4]
    if len(known) < NUM_SCALES:
        return None
    return {
        "in_channels": [mixer.shape[1] for mixer in known],
        "cout": known[0].shape[0],
        "expand": known[1].shape[0] != known[0].shape[0],
        "proj_type": 2 if "layer0_csm.out_conv.weight" in state else 1,
    }


def recognise_head(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of one official head, None if it is none; ``channels`` and ``resolution`` are those of its feature map."""
    convs = {key.removesuffix(".weight_orig"): value for key, value in state.items() if key.endswith(".weight_orig")}
    is_conditional = "cls" in convs
    stem = convs.get("main.0")
    has_stem = stem is not None and stem.shape[2:] == (3, 3)  # the last convolution, which may stand there too, is 4x4
    halvings = sorted({int(name.split(".")[1]) for name in convs if re.match(r"main\.\d+\.", name)})
    last = convs.get("cls" if is_conditional else f"main.{len(halvings) + (2 if has_stem else 0)}")
    if last is None or last.ndim != 4:
        return None
    is_patch = any(re.fullmatch(r"main\.\d+\.main\.1", name) for name in convs)
    is_separable = any(name.endswith(".pointwise") for name in convs)
    first_name = f"main.{halvings[0]}" if halvings else ""
    inner = next((convs[name] for name in sorted(convs) if first_name and name.startswith(f"{first_name}.main.0")), last)
    channels = stem.shape[1] if has_stem and stem is not None else inner.shape[0] if is_separable and halvings else inner.shape[1]
    resolution = HEAD_END_SIZE << len(halvings)
    has_own_width = bool(halvings) and last.shape[1] != HEAD_WIDTHS[HEAD_END_SIZE]
    found: dict[str, Any] = {"channels": channels, "resolution": resolution, "separable": is_separable, "patch": is_patch}
    inside: dict[str, Any] = {"ndf": last.shape[1] if has_own_width else None, "end_sz": HEAD_END_SIZE, "head": has_stem or None}
    if is_conditional and "embed.weight" in state:
        rows, width = state["embed.weight"].shape
        inside |= {"c_dim": rows, "cmap_dim": last.shape[0], "embedding_dim": width}
    return found | {"cond": int(is_conditional), "inside": inside}


def recognise_heads(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the official ``MultiScaleD``, None if it is another network. Heads are taken to end at a nominal size of 8."""
    numbers = sorted({key.split(".")[1] for key in state if key.startswith("mini_discs.")})
    heads = []
    for number in numbers:
        prefix = f"mini_discs.{number}."
        head = recognise_head({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        if head is None:
            return None
        heads.append(head)
    if not heads:
        return None
    is_conditional = bool(heads[0]["cond"])
    widths = [head["inside"]["ndf"] for head in heads if head["inside"]["ndf"] is not None]
    inside = heads[0]["inside"] | {"ndf": widths[0] if widths else None}
    is_patch = any(head["patch"] for head in heads)
    return {
        "channels": [head["channels"] for head in heads],
        "resolutions": [PATCH_START_SIZE if is_patch else head["resolution"] for head in heads],
        "num_discs": len(heads),
        "cond": int(is_conditional),
        "separable": any(head["separable"] for head in heads),
        "patch": is_patch,
        "SingleDiscCond" if is_conditional else "SingleDisc": inside,
    }


def recognise_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the official ``ProjectedDiscriminator``, None if it is another network.

    Whether images are enlarged to 224 leaves no trace; ``interp224`` is as for images of fewer pixels than that.
    """
    inner = {key.removeprefix("discriminator."): value for key, value in state.items() if key.startswith("discriminator.")}
    heads = recognise_heads(inner)
    if heads is None or f"{PRETRAINED}.layer0.0.weight" not in state:
        return None
    scratch = {key.removeprefix(f"{SCRATCH}."): value for key, value in state.items() if key.startswith(f"{SCRATCH}.")}
    projector = recognise_projector(scratch)
    backbone: dict[str, Any] = {name: heads[name] for name in ("num_discs", "cond", "separable", "patch")}
    if projector is None:
        backbone["proj_type"] = 0
    else:
        backbone |= {name: projector[name] for name in ("cout", "expand", "proj_type")}
    options: dict[str, Any] = {"class_": "ProjectedDiscriminator", "interp224": True, "backbone_kwargs": backbone}
    if heads["cond"]:
        options["c_dim"] = heads["SingleDiscCond"]["c_dim"]
    return options
