"""How the outputs of magvit2-ar parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.sub_token.objective import MAGVIT2Objective
from generative.autoregressive.sub_token.scheduler import SubTokenScheduler, sub_token_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.core.types import StepContext
from generative.tokenizers.lfq import LFQTokenizer
from pipelines.magvit2 import MAGVIT2Pipeline

SOURCE = "magvit2-ar"
GUIDANCE, TEMPERATURE = (1.75, 2.5), (1.1, 1.0)


def any_tokenizer(model: Module) -> LFQTokenizer:
    """A small tokenizer of the transformer's codes and grid, for the objective and the pipeline; its weights do not matter."""
    side = model.config.grid_size[0]
    return LFQTokenizer(image_size=2 * side, num_bits=sum(model.bits), ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2)


def forward_outputs(model: Module, tokenizer: LFQTokenizer, inputs: Tensors) -> dict[str, Tensor]:
    """Logits and losses of given sub-tokens."""
    tokens = model.join(torch.stack([inputs["ids_pre"], inputs["ids_post"]], dim=-1))
    pre, post = model(tokens, inputs["tf_labels"])
    objective = MAGVIT2Objective(model, tokenizer, torch.optim.AdamW, label_dropout=0.0)
    batch = {"tokens": tokens, "class_labels": inputs["tf_labels"]}
    losses = objective.loss(objective.networks, batch, StepContext(0, 0, torch.Generator()))
    return {"logits_pre": pre, "logits_post": post, "loss": torch.stack([losses["loss_0"], losses["loss_1"]])}


def sampling_outputs(model: Module, tokenizer: LFQTokenizer, labels: Tensor) -> dict[str, Tensor]:
    """Greedy sub-tokens and the guided logits over the temperature that they were taken from."""
    pipeline = MAGVIT2Pipeline(model, tokenizer)
    length, count = model.sequence_length, model.num_sub_tokens
    scale = sub_token_guidance(count, length, GUIDANCE)
    guided = classifier_free_guidance(pipeline.predict, labels, model.num_classes, scale)
    scheduler = SubTokenScheduler(length, count, TEMPERATURE, top_k=1)
    seen: list[Tensor] = []

    def predict(state: SampleState, timestep: int) -> Tensor:
        logits = guided(state, timestep)
        seen.append(logits / TEMPERATURE[timestep % count])
        return logits

    noise = ImageNoise([torch.Generator().manual_seed(0) for _ in labels])
    state = sample_loop(predict, scheduler, pipeline.prepare_state(labels, noise), scheduler.num_steps, noise)
    return {
        "gen_pre": state.sample[..., 0],
        "gen_post": state.sample[..., 1],
        "gen_guided_logits_pre": torch.stack(seen[::2], dim=1),
        "gen_guided_logits_post": torch.stack(seen[1::2], dim=1),
    }


def outputs(given: Given) -> Table:
    """The table of outputs."""
    tokenizer = any_tokenizer(given.model).eval()
    return {
        "logits_.+|loss": lambda: forward_outputs(given.model, tokenizer, given.inputs),
        "gen_.+": lambda: sampling_outputs(given.model, tokenizer, given.inputs["gen_labels"]),
    }
