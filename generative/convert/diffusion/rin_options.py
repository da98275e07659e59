"""Options of the official RIN (google-research/pix2seq): of its network, its training and its sampling, one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generative.convert.arguments import (
    DROPOUT,
    FLAG,
    NUMBER,
    POSITIVE,
    REQUIRED,
    SHARE,
    TEXT,
    UNUSED,
    WHOLE,
    Argument,
    Constructor,
    Kind,
    at_least,
    one_of,
)
from generative.core.errors import UserError
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.samplers.gamma import GammaSampler

POSITIONS = one_of(("learned", "sin_cos", "sin_cos_plus_learned"))
PREDICTIONS = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}
SAMPLERS = {
    "ddim": {"method": "ddim"},
    "ddpm": {"method": "ddpm"},
    "ddpm@large": {"method": "ddpm"},
    "ddpm@small": {"method": "ddpm", "step_variance": "small"},
}
UNTOLD_SLOTS = '{"latent_slots": N}'


def is_layers(value: Any) -> bool:
    """Whether a value is counts of layers, "4,4,4,4" or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    return isinstance(parts, (list, tuple)) and len(parts) > 0 and all(str(part).strip().isdigit() for part in parts)


def to_layers(value: Any) -> tuple[int, ...]:
    """Counts of layers."""
    return tuple(int(part) for part in (value.split(",") if isinstance(value, str) else value))


def is_clip(value: Any) -> bool:
    """Whether a value is a range to clip to: "auto", two numbers, or nothing."""
    if value in ("auto", "", None):
        return True
    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return False
    return low == -high and high > 0


def to_clip(value: Any) -> float | str | None:
    """The end of the range, "auto", or None."""
    if value in ("auto", "", None):
        return value or None
    return abs(float((value.split(",") if isinstance(value, str) else value)[1]))


LAYERS = Kind('counts of layers such as "4,4,4,4"', is_layers, to_layers)
CLIP = Kind('"auto", two numbers -b,b, or empty', is_clip, to_clip)
CONSTRUCTOR = Constructor(
    "ImageTapeDenoiser",
    "google-research/pix2seq",
    {
        # of the network
        "num_layers": Argument("num_layers", REQUIRED, LAYERS),
        "latent_slots": Argument("latent_slots", REQUIRED, POSITIVE, untold=UNTOLD_SLOTS),
        "latent_dim": Argument("latent_dim", REQUIRED, POSITIVE),
        "latent_mlp_ratio": Argument("latent_mlp_ratio", REQUIRED, POSITIVE),
        "latent_num_heads": Argument("latent_num_heads", REQUIRED, POSITIVE, untold='{"latent_num_heads": N}'),
        "tape_dim": Argument("tape_dim", REQUIRED, POSITIVE),
        "tape_mlp_ratio": Argument("tape_mlp_ratio", REQUIRED, at_least(0)),
        "rw_num_heads": Argument("rw_num_heads", REQUIRED, POSITIVE),
        "image_height": Argument("sample_size", REQUIRED, POSITIVE, untold='{"image_height": N, "image_width": N}'),
        "image_width": Argument(None, REQUIRED, POSITIVE, untold='{"image_height": N, "image_width": N}'),
        "image_channels": Argument("in_channels", 3, POSITIVE),
        "patch_size": Argument("patch_size", REQUIRED, POSITIVE),
        "conv_kernel_size": Argument("conv_kernel_size", 0, WHOLE),
        "conv_drop_units": Argument("conv_drop_units", 0.0, DROPOUT),
        "latent_pos_encoding": Argument("latent_pos_encoding", "learned", POSITIONS),
        "tape_pos_encoding": Argument("tape_pos_encoding", "learned", POSITIONS),
        "drop_path": Argument("drop_path", 0.0, DROPOUT),
        "drop_units": Argument("drop_units", 0.1, DROPOUT),
        "drop_att": Argument("drop_att", 0.0, DROPOUT),
        "drop_sc": UNUSED,  # in the official configuration, read by nothing
        "time_scaling": Argument("position_extent", 1e4, NUMBER),
        "self_cond": Argument("self_cond", "none", one_of(("none", "latent", "tape", "latent+tape"))),
        "time_on_latent": Argument("time_on_latent", False, FLAG),
        "cond_on_latent_n": Argument(None, None, one_of((None, 0, 1), ", as a class is one token")),
        "cond_on_latent": Argument(None, None, one_of((None, False, True))),
        "cond_tape_writable": Argument("cond_tape_writable", False, FLAG),
        "cond_dim": Argument("cond_dim", 0, at_least(0)),
        "cond_proj": Argument("cond_proj", True, FLAG),
        "cond_decoupled_read": Argument("cond_decoupled_read", False, FLAG),
        "xattn_enc_ln": Argument("xattn_enc_ln", False, FLAG),
        # of the model around it
        "num_classes": Argument("num_classes", 1000, POSITIVE),
        "conditional": Argument("class_conditional", "class", one_of({"class": True, "none": False})),
        "cond_dropout": Argument("class_dropout_prob", 0.0, DROPOUT),
        "train_schedule": Argument(None, "cosine", TEXT),
        "infer_schedule": Argument(None, "cosine", Kind("text or None", lambda value: value is None or isinstance(value, str))),
        "pred_type": Argument(None, "eps", one_of(PREDICTIONS)),
        "loss_type": Argument(None, None, one_of({None: None, "eps": "epsilon", "x": "sample"})),
        "b_scale": Argument(None, 1.0, NUMBER),
        "x0_clip": Argument(None, "auto", CLIP),
        "normalize_noisy_input": Argument(None, False, FLAG),
        "guidance": Argument(None, 0.0, NUMBER),
        "td": Argument(None, 0.0, NUMBER),
        "infer_iterations": Argument(None, 100, POSITIVE),
        "iterations": Argument(None, None, Kind("a number of steps", lambda value: value is None or POSITIVE.fits(value))),
        "sampler_name": Argument(None, "ddpm", one_of(SAMPLERS)),
        "self_cond_rate": Argument(None, 0.5, SHARE),
        "self_cond_by_masking": Argument(None, False, FLAG),
        "self_cond_decay": Argument(None, 0.0, one_of((0, 0.0), ", as the official sampling script has it at 0")),
    },
)


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our RIN.

    Raises:
        UserError: If an option is unknown, of the wrong kind or without an equal here.
    """
    values = CONSTRUCTOR.values(config)
    if values["image_height"] != values["image_width"]:
        raise CONSTRUCTOR.refuse("image_width", values["image_width"], f"image_height {values['image_height']}, a square")
    number, flag = values["cond_on_latent_n"], values["cond_on_latent"]
    if None not in (number, flag) and bool(number) != flag:
        raise CONSTRUCTOR.refuse("cond_on_latent", flag, f"what cond_on_latent_n={number} says")
    on_latent = bool(number or flag)
    if on_latent and not values["conditional"]:
        raise CONSTRUCTOR.refuse("conditional", "none", "'class' where the class takes a latent", " with cond_on_latent")
    return CONSTRUCTOR.read(config) | {"cond_on_latent": on_latent}


def schedule_options(text: str) -> dict[str, Any]:
    """Options of ``ContinuousDiffusion`` for an official name of a schedule: ``cosine``, ``sigmoid@-3,3,0.9`` and so on.

    Raises:
        UserError: If there is no such schedule.
    """
    name, at, rest = text.partition("@")
    numbers = rest.split(",") if at else []
    if not at and name.startswith(("simple_linear", "cosine")):
        return {"schedule": "simple_linear" if name.startswith("simple_linear") else "offset_cosine"}
    try:
        if name in ("cosine", "sigmoid") and len(numbers) == 3:
            return {"schedule": name, **dict(zip(("start", "end", "tau"), map(float, numbers), strict=True))}
        if name == "log" and len(numbers) == 3:
            ends = [float(number) for number in numbers[:2]]
            ends = ends[::-1] if numbers[2].lower() in ("t", "true") else ends
            return {"schedule": name, "start": ends[0], "end": ends[1]}
    except ValueError:
        pass
    raise CONSTRUCTOR.refuse(
        "train_schedule", text, "simple_linear, cosine, cosine@START,END,TAU, sigmoid@START,END,TAU, log@START,END,REVERSE"
    )


def formulation(config: Mapping[str, Any]) -> ContinuousDiffusion:
    """What the network was trained under: it is told gamma times ``time_scaling``.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    predicts, compared = values["pred_type"], values["loss_type"]
    if compared is None and predicts == "v_prediction":
        raise UserError("pred_type 'v' of google-research/pix2seq has no loss of its own; give loss_type 'eps' or 'x'")
    return ContinuousDiffusion(
        prediction_type=predicts,
        network_time="gamma",
        time_scale=float(values["time_scaling"]),
        data_scale=float(values["b_scale"]),
        normalize_input=values["normalize_noisy_input"],
        loss=compared or predicts,
        **schedule_options(values["train_schedule"]),
    )


def sampler(config: Mapping[str, Any], **options: Any) -> GammaSampler:
    """The official sampler.

    Args:
        config: Official options.
        **options: Of ours, in place of those that they give.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    clip, scale = values["x0_clip"], float(values["b_scale"])
    steps = schedule_options(values["infer_schedule"]) if values["infer_schedule"] else {}
    given = {"clip_range": 1.0 if clip in (None, "auto") else clip / scale, "clip_sample": clip is not None}
    return GammaSampler(**{**values["sampler_name"], **steps, **given, "time_shift": float(values["td"]), **options})
