"""How the outputs of fitv2 parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.fit_options import formulation, guidance_defaults
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.objectives.any_size import masked_losses
from generative.layers.packing import to_images, valid_tokens

SOURCE = "fitv2"
GUIDED_CHANNELS = 3  # the official forward's, whatever the number of channels
TOLD = Interpolant(data_time=1)
"""The official guided forward reads times as shares of the way from noise to data, whatever a network was trained under."""


def is_token_major(given: Given) -> bool:
    """Whether sequences are (B, N, C p^2): officially of networks of the transport only."""
    return bool(given.config.get("use_sit", False))


def patches(given: Given, values: Tensor) -> Tensor:
    """An official sequence as (B, C, N, p^2)."""
    tokens = values if is_token_major(given) else values.transpose(1, 2)
    return tokens.unflatten(2, (-1, given.model.config.patch_size**2)).transpose(1, 2)


def sequence(given: Given, values: Tensor) -> Tensor:
    """(B, C, N, p^2) as an official sequence."""
    tokens = values.transpose(1, 2).flatten(2)
    return tokens if is_token_major(given) else tokens.transpose(1, 2)


def whole(output: DenoiserOutput) -> Tensor:
    """Prediction and variances on one channel axis."""
    return output.prediction if output.variance is None else torch.cat([output.prediction, output.variance], dim=1)


def sizes_of(given: Given, suffix: str = "") -> Tensor:
    """(B, 2) height and width in tokens."""
    return given.inputs[f"size{suffix}"].reshape(-1, 2).long()


def forward(given: Given, x: Tensor, time: Tensor) -> DenoiserOutput:
    """The network on official sequences; officially a time beyond 1 is 1."""
    return given.model(patches(given, x), time.clamp(max=1), given.inputs["y"], sizes=sizes_of(given))


def guided(given: Given) -> Tensor:
    """The official guided forward: of 2n rows, of which the first half of x is used, the conditional and the null half.

    Both halves share the guided channels; the others stay as each half's branch predicted them.
    """
    inputs, model = given.inputs, given.model
    half = len(inputs["x_cfg"]) // 2
    labels, time, sizes = inputs["y_cfg"], inputs["t_cfg"].clamp(max=1), sizes_of(given, "_cfg")
    options = {**given.config, **{name: given.sampling[name] for name in ("cfg_scale", "scale_pow") if name in given.sampling}}
    chosen = guidance_defaults({**options, "class_dropout_prob": 0.1})
    evaluate, branches = evaluator(model, TOLD), []

    def recorded(state: SampleState, at: Tensor, wanted: Any) -> list[DenoiserOutput]:
        # Officially each half has its own labels, times and sizes.
        both = [evaluate(state, time[rows], [Branch(Condition(labels[rows], sizes=sizes[rows]))])[0] for rows in halves]
        branches.extend(both)
        return both[: len(wanted)]

    halves = (slice(None, half), slice(half, None))
    guidance = Extrapolation(
        scale=chosen["guidance_scale"],
        null_label=model.config.num_classes,
        channels=GUIDED_CHANNELS,
        schedule=chosen.get("guidance_schedule", "constant"),
        exponent=chosen.get("guidance_exponent", 1.0),
    )
    state = SampleState(patches(given, inputs["x_cfg"][:half]))
    result = guidance.bind(recorded, Condition(labels[:half], sizes=sizes[:half]), TOLD)(state, time[:half])
    shared = result.prediction[:, :GUIDED_CHANNELS]
    rest = [whole(branch)[:, GUIDED_CHANNELS:] for branch in branches]
    return torch.cat([sequence(given, torch.cat([shared, each], dim=1)) for each in rest])


def rotations(given: Given) -> tuple[Tensor, Tensor]:
    """Cosines and sines as the official code has them: each once for both values of a pair."""
    cos, sin = given.model.rotations(sizes_of(given), given.inputs["mask"].shape[1])
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


def attention(given: Given) -> Tensor:
    """The first block's attention on patches embedded without a bias; officially nothing is mixed into the padding."""
    model, sizes = given.model, sizes_of(given)
    tokens = patches(given, given.inputs["x"]).transpose(1, 2).flatten(2)
    layer, length = model.blocks[0].attention, tokens.shape[1]
    is_valid = valid_tokens(sizes, length)
    angles = [each[:, None] for each in model.rotations(sizes, length)] if model.config.rotates else [None, None]
    mixed = layer(F.linear(tokens, model.patch_embedding.weight), *angles, is_valid[:, None, None])
    return torch.where(is_valid[..., None], mixed, layer.out.bias)


def draw(given: Given) -> Tensor:
    """Times of the file's draws; ours are those of the noise, officially of the data."""
    process = formulation({**given.config, "use_sit": True, "learn_sigma": False})
    assert isinstance(process, Interpolant)
    draws = given.inputs["u"]
    return process.times_of_draws(-draws if process.config.density == "logit_normal" else 1 - draws)


def training(given: Given) -> tuple[Interpolant, Tensor, Tensor, Tensor]:
    """The formulation, the file's times, x_t and noise."""
    process = formulation({**given.config, "use_sit": True, "learn_sigma": False})
    assert isinstance(process, Interpolant)
    times = draw(given)
    start, noise = (patches(given, given.inputs[name]) for name in ("x1", "x0"))
    return process, times, process.add_noise(start, noise, times), noise


def loss_prediction(given: Given) -> DenoiserOutput:
    """What is predicted of the noised data."""
    _, times, sample, _ = training(given)
    return given.model(sample, times, given.inputs["y"], sizes=sizes_of(given))


def loss(given: Given) -> Tensor:
    """Loss of each image over its own tokens, no label dropped."""
    process, times, sample, noise = training(given)
    start = patches(given, given.inputs["x1"])
    return masked_losses(process, loss_prediction(given), start, noise, sample, times, sizes_of(given))["mse"]


def outputs(given: Given) -> Table:
    """The table of outputs."""
    inputs, model = given.inputs, given.model
    height, width = sizes_of(given)[0].tolist()

    return {
        "forward": lambda: sequence(given, whole(forward(given, inputs["x"], inputs["t"]))),
        "forward_with_cfg": lambda: guided(given),
        "block0_attention": lambda: attention(given),
        "rope_cos": lambda: rotations(given)[0],
        "rope_sin": lambda: rotations(given)[1],
        "t_from_u": lambda: draw(given),
        "loss": lambda: loss(given),
        "loss_pred": lambda: sequence(given, whole(loss_prediction(given))),
        "unpatchified_sample0": lambda: to_images(
            whole(forward(given, inputs["x"], inputs["t"]))[:1], height, width, model.config.patch_size
        ),
    }
