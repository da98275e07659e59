"""How the outputs of llamagen parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.next_token.objective import AutoregressiveObjective
from generative.autoregressive.token_sampling import RasterScheduler
from generative.convert.tokenizers.llamagen_vq import official_losses
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.core.types import StepContext
from pipelines.autoregressive import AutoregressiveImagePipeline

SOURCE = "llamagen"
GUIDANCE = 2.0


def decode(vq: Module, ids: Tensor) -> Tensor:
    """Images of ids, not clamped."""
    return vq.reconstruct(vq.ids_to_latents(ids, vq.grid_size))


def generate(gpt: Module, vq: Module, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Greedy ids (B, L) and the guided logits (B, L, V) they were taken from, by the pipeline's own steps."""
    pipeline = AutoregressiveImagePipeline(gpt, vq)
    length, seen = vq.sequence_length, []
    guided = classifier_free_guidance(pipeline.predict, labels, gpt.num_classes, step_guidance(scale, length))

    def predict(state: SampleState, position: int) -> Tensor:
        seen.append(guided(state, position))
        return seen[-1]

    noise = ImageNoise([torch.Generator().manual_seed(0) for _ in labels])
    state = pipeline.prepare_state(labels, noise)
    state = sample_loop(predict, RasterScheduler(length, top_k=1), state, length, noise)
    return state.sample, torch.stack(seen, dim=1)


def tokenizer_outputs(vq: Module, inputs: Tensors) -> dict[str, Tensor]:
    """What the tokenizer makes of images and of ids."""
    z = vq.encode_latents(inputs["images"])
    outputs = {"z": z, "quant": vq.quantizer(z).latents, "ids": vq.encode(inputs["images"])}
    return outputs | {"recon": vq(inputs["images"]).images, "given_ids_image": decode(vq, inputs["given_ids"])}


@torch.enable_grad()
def training_outputs(vq: Module, inputs: Tensors, config: dict) -> dict[str, Tensor]:
    """Losses of the quantiser in training, and the gradients of the first two."""
    z = vq.encode_latents(inputs["images"]).detach().requires_grad_()
    quantizer = vq.quantizer.train()
    losses = official_losses(quantizer(z).losses, config)
    gradients = torch.autograd.grad(losses[0] + losses[1], [z, quantizer.codebook])
    quantizer.eval()
    return {
        "vq_losses": losses.detach(),
        "vq_losses_grad_z": gradients[0],
        "vq_losses_grad_codebook": gradients[1],
    }


def transformer_outputs(gpt: Module, vq: Module, inputs: Tensors) -> dict[str, Tensor]:
    """Logits and loss of the ids of the file's images."""
    ids = vq.encode(inputs["images"])
    objective = AutoregressiveObjective(gpt, vq, torch.optim.AdamW, label_dropout=0.0)
    batch = {"tokens": ids, "class_labels": inputs["tf_labels"]}
    loss = objective.loss(objective.networks, batch, StepContext(0, 0, torch.Generator()))["loss"]
    return {"logits": gpt(ids, inputs["tf_labels"]), "loss": loss.reshape(1)}


def sampling_outputs(gpt: Module, vq: Module, inputs: Tensors) -> dict[str, Tensor]:
    """Greedy samples, with and without guidance."""
    ids, logits = generate(gpt, vq, inputs["gen_labels"], GUIDANCE)
    plain_ids, plain_logits = generate(gpt, vq, inputs["gen_labels"], 1.0)
    outputs = {"gen_ids": ids, "gen_logits": logits, "gen_image": decode(vq, ids)}
    return outputs | {"gen_nocfg_ids": plain_ids, "gen_nocfg_logits": plain_logits}


def outputs(given: Given) -> Table:
    """The table of outputs."""
    gpt, vq = given.networks["gpt"], given.networks["vq"]
    training = training_outputs(vq, given.inputs, given.config["vq"])  # now: the objective freezes its tokenizer
    return {
        "z|quant|ids|recon|given_ids_image": lambda: tokenizer_outputs(vq, given.inputs),
        "vq_losses.*": training,
        "logits|loss": lambda: transformer_outputs(gpt, vq, given.inputs),
        "gen_.+": lambda: sampling_outputs(gpt, vq, given.inputs),
    }
