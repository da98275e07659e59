"""How the outputs of var parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.next_scale.scheduler import NextScaleScheduler
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from pipelines.var import VARPipeline

SOURCE = "var"
OFFICIAL_CFG = 1.5  # of gen_*; our scale is one more


class RecordingScheduler(NextScaleScheduler):
    """Keeps the guided logits of every scale."""

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw the scale; see ``NextScaleScheduler``."""
        self.logits = [*getattr(self, "logits", []), prediction]
        return super().step(prediction, timestep, state, noise)


def generate(networks: Mapping[str, Module], labels: Tensor) -> dict[str, Tensor]:
    """Greedy samples with guidance, through the pipeline's own loop."""
    pipeline = VARPipeline(networks["var"], networks["vae"])
    pipeline.set_progress_bar_config(disable=True)
    scheduler = RecordingScheduler(networks["vae"], top_k=1)
    scale = step_guidance(1 + OFFICIAL_CFG, scheduler.num_scales, "linear")
    noise = pipeline.image_noise(torch.Generator().manual_seed(0), len(labels))
    state = pipeline.run(labels, scheduler, scale, noise)
    return {
        "gen_ids": state.sample,
        "gen_guided_logits": torch.cat(scheduler.logits, dim=1),
        "gen_f_hat": state.memory["accumulated"],
        "gen_image": pipeline.decode(state) / 2 + 0.5,
    }


def teach(networks: Mapping[str, Module], inputs: Tensors) -> dict[str, Tensor]:
    """Teacher-forced logits of the images' own tokens."""
    tokens = networks["vae"].encode(inputs["images"])
    read = networks["vae"].teacher_inputs(tokens)
    logits = networks["var"](read, inputs["tf_labels"])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).reshape(1)
    return {"gt_ids": tokens, "var_input": read, "logits": logits, "loss": loss}


def outputs(given: Given) -> Table:
    """The table of outputs."""
    return {
        "gen_.+": lambda: generate(given.networks, given.inputs["gen_labels"]),
        "gt_ids|var_input|logits|loss": lambda: teach(given.networks, given.inputs),
    }
