"""How the outputs of rin parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.rin_options import CONSTRUCTOR, SAMPLERS, formulation, sampler, schedule_options
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.networks.rin_blocks import sinusoid
from generative.diffusion.objectives.self_conditioning import asked, masked
from generative.diffusion.samplers.gamma import step_to

SOURCE = "rin"
STEP_TIMES = (0.6, 0.55)  # of the recorded steps


def to_channels_first(images: Tensor) -> Tensor:
    """(..., H, W, C) as (..., C, H, W)."""
    return images.movedim(-1, -3)


def to_channels_last(images: Tensor) -> Tensor:
    """(..., C, H, W) as (..., H, W, C)."""
    return images.movedim(-3, -1)


class RecordedNoise:
    """Hands out the file's noise, step by step."""

    def __init__(self, steps: Tensor) -> None:
        self.steps = iter(to_channels_first(steps))

    def randn(self, *shape: int) -> Tensor:
        """The next step's."""
        return next(self.steps)


class File:
    """One file: its network, formulation and options."""

    def __init__(self, given: Given) -> None:
        self.model, self.inputs = given.model, given.inputs
        self.options: Mapping[str, Any] = {**given.config, **given.sampling}
        self.values = CONSTRUCTOR.values(self.options)
        self.trained = formulation(self.options)
        self.scale = self.trained.config.data_scale
        before = {
            kind: next((value for key, value in given.inputs.items() if key.startswith(f"{kind}_prev")), None)
            for kind in ("latent", "tape")
        }
        self.memory = tuple(value for kind, value in before.items() if value is not None and kind in self.model.config.self_cond)

    def told(self, gamma: Tensor) -> Tensor:
        """What the network is told of gammas."""
        return gamma.reshape(-1) * self.trained.config.time_scale

    def forward(self, sample: Tensor, gamma: Tensor, labels: Tensor, memory: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Image, latents and interface, for a sample (B, H, W, C)."""
        given = to_channels_first(sample)
        if self.trained.config.normalize_input:
            given = given / given.flatten(1).std(1, correction=0)[:, None, None, None]
        latents, tape = self.model.interface(given, self.told(gamma), labels, memory)
        return {"image": to_channels_last(self.model.assemble_patches(tape)), "latent": latents, "tape": tape}

    def clip(self, start: Tensor) -> Tensor:
        """Scaled x_0, clipped as the file says."""
        clip = self.values["x0_clip"]
        return start if clip is None else start.clamp(*((-self.scale, self.scale) if clip == "auto" else (-clip, clip)))

    def trained_pass(self) -> dict[str, Tensor]:
        """The loss, and what it goes through."""
        inputs = self.inputs
        data = to_channels_first(inputs["images01"] * 2 - 1)
        noise, times = to_channels_first(inputs["noise"]), inputs["t"]
        sample = self.trained.add_noise(data, noise, times)
        told = self.trained.network_input(sample, times)
        condition = Condition(inputs["labels"])
        memory = tuple(masked(part, inputs["self_cond_mask"]) for part in asked(self.model, *told, condition))
        output = self.model(*told, condition.class_labels, memory)
        start = self.clip(self.scale * self.trained.predict_start(output, sample, times))
        by_clipped = {"x": (start / self.scale - data).square()}
        eps = (self.trained.predict_noise(output, sample, times) - noise).square()
        values = {
            "x_noised": to_channels_last(self.scale * sample),
            "x0_pred": to_channels_last(start),
            "loss_eps": eps.mean().reshape(1),
        }
        names = [kind for kind in ("latent", "tape") if kind in self.model.config.self_cond]
        kept = {f"self_cond_{name}_in": part for name, part in zip(names, memory, strict=True)}
        return values | kept | {"loss_x": by_clipped["x"].mean().reshape(1), "gamma_of_t": self.trained.gamma(times)}

    def one_step(self) -> dict[str, Tensor]:
        """The recorded steps of every sampler."""
        inputs = self.inputs
        own = sampler(self.options).own or self.trained
        now, then = own.gamma(torch.tensor(STEP_TIMES))
        sample = to_channels_first(inputs["x_step"])
        count = len(sample)
        output = self.forward(inputs["x_step"], now.expand(count), inputs["labels"], self.memory)["image"]
        time = self.trained.time_of_ratio((1 / now.double() - 1).sqrt().reshape(1) / self.scale)
        implied = self.trained.predict_start(DenoiserOutput(to_channels_first(output)), sample / self.scale, time)
        start = self.clip(self.scale * implied).float()
        noise = (sample - now.sqrt() * start) / (1 - now).sqrt()
        values = {"step_gammas": torch.stack([now, then]), "step_x0": start, "step_eps_truncated": noise}
        for name, options in SAMPLERS.items():
            mean, spread = step_to(start, sample, now, then, options["method"], options.get("step_variance", "large"))
            values[f"step/{name.replace('@', '_')}"] = mean + spread * to_channels_first(inputs["step_noise"])
        return {name: to_channels_last(value) if value.ndim == 4 else value for name, value in values.items()}

    def generate(self, name: str) -> Tensor:
        """A whole run of a sampler, x_0 at its last step."""
        chosen = SAMPLERS[name.replace("_", "@")]
        steps = self.inputs["gen_step_noise"]
        guidance = Extrapolation(scale=1 + self.values["guidance"], null_label=self.model.config.num_classes)
        predict = guidance.bind(evaluator(self.model, self.trained), Condition(self.inputs["labels"]), self.trained)
        state = SampleState(to_channels_first(self.inputs["gen_init"]))
        made = sampler(self.options, **{"step_variance": "large", **chosen}).sample(
            predict,
            state,
            len(steps),
            RecordedNoise(steps),  # type: ignore[arg-type]
            self.trained,
        )
        return to_channels_last(self.scale * made.sample)


def outputs(given: Given) -> Table:
    """The table of outputs."""
    file, inputs = File(given), given.inputs
    labels = inputs["labels"]
    null = torch.full_like(labels, given.model.config.num_classes)

    def forward(kind: str | None) -> dict[str, Tensor]:
        memory = () if kind == "_no_prev" else file.memory
        made = file.forward(inputs["x"], inputs["gamma"], null if kind == "_null_label" else labels, memory)
        return {f"forward{kind or ''}/{name}": value for name, value in made.items()}

    def schedule(name: str) -> Tensor:
        return ContinuousDiffusion(**schedule_options(name)).gamma(inputs["t_grid"])

    return {
        "forward(_no_prev|_null_label)?/(?:image|latent|tape)": forward,
        "schedule/(.+)": schedule,
        "time_embedding": lambda: given.model.time_embedder(file.told(inputs["gamma"])),
        "time_sinusoid_before_normalisation": lambda: sinusoid(
            file.told(inputs["gamma"]), given.model.time_embedder.frequency_dim
        ),
        "gamma_of_t|x_noised|x0_pred|self_cond_(?:latent|tape)_in|loss_(?:eps|x)": file.trained_pass,
        "step_gammas|step_x0|step_eps_truncated|step/.+": file.one_step,
        "generate_(.+)": file.generate,
    }
