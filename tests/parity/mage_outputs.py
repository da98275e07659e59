"""How the outputs of MAGE's parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import functools
import math
import re

import torch
from outputs import Given, Table
from torch import Tensor
from torch.nn import functional as F

from generative.autoregressive.masked.mage_masking import NestedMasks, nested_masks
from generative.autoregressive.masked.mage_objective import smoothed_cross_entropy
from generative.autoregressive.masked.parallel_decoding import chosen_log_probabilities, least_confident
from generative.autoregressive.options import MAGEOptions
from generative.convert.autoregressive.mage import KEY_PATTERNS, masking
from generative.convert.keys import rename_by
from generative.core.sampling import SampleState, classifier_free_guidance
from generative.tokenizers.representation import standardize
from pipelines.mage import MAGEPipeline, mage_scheduler

LABEL_SMOOTHING = 0.1  # officially no option


def file_masks(given: Given) -> NestedMasks:
    """Masks of the file's numbers: rate and smallest share are the config's."""
    uniform = given.inputs["mask_u"]
    length = uniform.shape[1]
    return nested_masks(uniform, masking(given.config).num_dropped(length), math.ceil(length * given.config["mask_rate"]))


def training(given: Given) -> tuple[Tensor, Tensor, Tensor, NestedMasks]:
    """Encoder features, logits of all ids, the loss over masked tokens, and the masks."""
    network, inputs = given.model, given.inputs
    masks = file_masks(given)
    tokens = inputs["token_indices"].masked_fill(masks.masked, network.mask_token)
    vector, labels = None, inputs["class_label"]
    if network.config.condition != "class":
        share = given.config["net"].get("rep_drop_prob", 0.0)
        dropped = torch.tensor(given.config["rep_drop_u"]) < share
        vector, labels = standardize(inputs["raw_representation"]), torch.where(dropped, network.num_classes, 0)
    features = network.encode(tokens, masks.kept, labels, vector)
    hidden = network.decode(features, masks.kept, masks.masked)
    losses = smoothed_cross_entropy(network.logits(hidden[:, 1:]), inputs["token_indices"], LABEL_SMOOTHING)
    loss = (losses * masks.masked).sum() / masks.masked.sum()
    return features, network.logits(hidden, network.mask_token + 1), loss, masks


def gradients(given: Given) -> dict[str, Tensor]:
    """Gradients of the loss by our names."""
    with torch.enable_grad():
        given.model.zero_grad()
        training(given)[2].backward()
    return {name: parameter.grad for name, parameter in given.model.named_parameters() if parameter.grad is not None}


def decoding(given: Given) -> dict[str, Tensor]:
    """Iterations of sampling, each token drawn and each choice made with the file's Gumbel numbers."""
    network, inputs, config = given.model, given.inputs, given.config
    options = MAGEOptions(
        num_inference_steps=config["num_iter"],
        choice_temperature=config["choice_temperature"],
        guidance_scale=1 + config.get("cfg", 0.0),
    )
    batch_size = inputs["token_gumbel"].shape[1]
    state = SampleState(torch.full((batch_size, network.sequence_length), network.mask_token), {})
    labels = torch.zeros(batch_size, dtype=torch.int64)
    if "sampled_representation" in inputs and network.config.condition == "representation":
        state.memory["vector"] = inputs["sampled_representation"]
    elif "class_label_gen" in inputs:
        labels = inputs["class_label_gen"]
    predict = classifier_free_guidance(
        functools.partial(MAGEPipeline.predict_with, network), labels, network.num_classes, options.step_scale()
    )
    scheduler = mage_scheduler(network, options)
    shown: dict[str, list[Tensor]] = {"logits_stride16": [], "sampled_tokens": [], "masks": []}
    for step in scheduler.set_timesteps(options.num_inference_steps, labels.device):
        logits = predict(state, step)
        unknown = state.sample == network.mask_token
        draw = (logits + inputs["token_gumbel"][step]).argmax(-1)
        drawn = torch.where(unknown, draw, state.sample)
        noise = scheduler.annealed(step) * inputs["choice_gumbel"][step]
        # The official code masks one token again after the last iteration too, of which nothing comes.
        still = least_confident(chosen_log_probabilities(logits, drawn) + noise, unknown, max(scheduler.counts[step], 1))
        state = SampleState(drawn.masked_fill(still, network.mask_token), state.memory)
        for name, value in (("logits_stride16", logits[:, ::16]), ("sampled_tokens", draw), ("masks", still.long())):
            shown[name].append(value)
    return {f"decode/{name}": torch.stack(values) for name, values in shown.items()} | {"decode/final_tokens": drawn}


def our_name(key: str) -> str:
    """Our name of an official tensor.

    Raises:
        KeyError: If there is none.
    """
    name = rename_by(KEY_PATTERNS, key)
    if name is None:
        raise KeyError(key)
    return name


def outputs_of(given: Given) -> Table:
    """The table of outputs."""
    run = functools.cache(lambda: training(given))
    run_gradients = functools.cache(lambda: gradients(given))
    codes = given.model.config.num_codes

    def strided(stride: str) -> Tensor:
        return run()[1][:, :: int(stride), :codes]

    def strided_ids(stride: str, id_stride: str) -> Tensor:
        return run()[1][:, :: int(stride), :: int(id_stride)]

    def gradient(key: str) -> Tensor:
        rows = re.fullmatch(r"(.+)_rows_stride(\d+)", key)
        value = run_gradients()[our_name(rows[1] if rows else key)]
        return value[:: int(rows[2])] if rows else value

    def dropped() -> Tensor:
        masks = file_masks(given)
        return F.pad(torch.ones_like(masks.masked, dtype=torch.int64).scatter(1, masks.kept, 0), (1, 0))

    return {
        "normalized_representation": lambda: standardize(given.inputs["raw_representation"]),
        "mask_ratio_quantiles": lambda: masking(given.config).ratio(given.inputs["ratio_u"]).float(),
        "drop_mask": dropped,
        "all_mask": lambda: F.pad(file_masks(given).masked.long(), (1, 0)),
        "encoder_tokens": lambda: run()[0],
        r"logits_codebook_stride(\d+)": strided,
        r"logits_stride(\d+)_stride(\d+)": strided_ids,
        "loss": lambda: run()[2],
        "loss_grad/(.+)": gradient,
        "decode/.+": lambda: decoding(given),
    }
