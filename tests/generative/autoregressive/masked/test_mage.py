"""MAGE: what its encoder and decoder see, its masks, its conditions and its training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from generative.autoregressive.masked.mage import MAGE_SIZES, MAGETransformer
from generative.autoregressive.masked.mage_masking import MAGEMasking, nested_masks
from generative.autoregressive.masked.mage_objective import MAGEObjective, smoothed_cross_entropy
from generative.autoregressive.options import MAGEOptions
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.pixel import PixelTokenizer

SIZES: dict[str, Any] = {
    "num_codes": 5,
    "representation_dim": 6,
    "grid_size": (4, 4),
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_hidden_size": 8,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


SAMPLING = MAGEOptions(num_inference_steps=4)


def make(**options: Any) -> MAGETransformer:
    torch.manual_seed(0)
    network = MAGETransformer(**(SIZES | options)).eval()
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return network


def tokens(batch_size: int = 2) -> Tensor:
    return torch.randint(5, (batch_size, 16), generator=torch.Generator().manual_seed(0))


def test_only_kept_tokens_reach_the_encoder_and_only_known_ones_the_prediction() -> None:
    network, ids = make(), tokens()
    masks = nested_masks(torch.rand(2, 16, generator=torch.Generator().manual_seed(1)), 6, 9)
    assert masks.masked.sum(1).tolist() == [9, 9] and masks.kept.shape == (2, 10)
    assert all(row.tolist() == sorted(row.tolist()) for row in masks.kept)
    assert bool((~masks.masked.gather(1, masks.kept)).sum(1).eq(7).all()), "all that are known are kept"
    vector = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    seen = network(ids.masked_fill(masks.masked, network.mask_token), vector=vector, kept=masks.kept)
    others = torch.where(masks.masked, (ids + 1) % 5, ids)
    same = network(others.masked_fill(masks.masked, network.mask_token), vector=vector, kept=masks.kept)
    assert seen.shape == (2, 16, 5) and torch.equal(seen, same)
    changed = network(((ids + 1) % 5).masked_fill(masks.masked, network.mask_token), vector=vector, kept=masks.kept)
    assert (seen - changed).abs().max() > 1e-3


def test_nothing_dropped_is_the_same_as_all_kept() -> None:
    network, ids = make(condition="none", class_dropout_prob=0.0), tokens()
    ids[:, ::3] = network.mask_token
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(network(ids, kept=everything), network(ids))


def test_the_null_label_takes_the_representation_away() -> None:
    network, ids = make(), tokens()
    ids[:, 3:] = network.mask_token
    vector = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    one = network(ids, torch.tensor([0, 1]), vector)
    torch.testing.assert_close(one, torch.cat([network(ids[:1], vector=vector[:1]), network(ids[1:])]))
    assert (network(ids, vector=vector) - network(ids)).abs().max() > 1e-3


def test_classes_matter_and_the_null_class_must_be_trained() -> None:
    network, ids = make(condition="class", num_classes=3), tokens()
    ids[:, 3:] = network.mask_token
    assert (network(ids, torch.tensor([0, 0])) - network(ids, torch.tensor([1, 1]))).abs().max() > 1e-3
    assert torch.equal(network(ids), network(ids, torch.tensor([3, 3])))
    with pytest.raises(UserError, match="no null condition"):
        make(condition="class", num_classes=3, class_dropout_prob=0.0)(ids)


def test_words_learn_as_inputs_alone() -> None:
    network = make(condition="none", class_dropout_prob=0.0)
    ids = torch.full((1, 16), network.mask_token)
    network(ids).sum().backward()
    gradient = network.token_embedding.weight.grad
    assert gradient is not None and not gradient[:5].any() and gradient[network.mask_token].any()


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.train().drop.p = 0.0
        for block in [*network.blocks, *network.decoder_blocks]:
            block.attention.attention_dropout, block.attention.dropout.p, block.mlp.dropout.p = 0.0, 0.0, 0.0
        network(tokens(), vector=torch.ones(2, 6)).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("size", "parameters"), [("B", 145_094_377), ("L", 408_051_945), ("H", 793_968_361)])
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        network = MAGETransformer(num_spare_ids=1000, **MAGE_SIZES[size])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"condition": "text"}, "condition must be one of none, class, representation, got 'text'"),
        ({"representation_dim": 0}, "representation_dim must be at least 1, got 0"),
        ({"num_heads": 3}, "num_heads must divide hidden_size 16, got 3"),
        ({"decoder_num_heads": 3}, "num_heads must divide hidden_size 8, got 3"),
        ({"condition": "none"}, "class_dropout_prob 0.1 needs a condition to drop"),
        ({"token_std": 0.0}, "token_std must be positive, got 0.0"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**options)


def test_masks_follow_the_truncated_normal() -> None:
    masking = MAGEMasking(0.4, 0.9, 0.6, 0.2)
    uniform = torch.linspace(0, 0.999, 7, dtype=torch.float64)
    expected = stats.truncnorm((0.4 - 0.6) / 0.2, (0.9 - 0.6) / 0.2, loc=0.6, scale=0.2).ppf(uniform.numpy())
    torch.testing.assert_close(masking.ratio(uniform), torch.from_numpy(expected))
    drawn = [masking.draw(3, 20, torch.Generator().manual_seed(seed)) for seed in range(200)]
    counts = torch.stack([masks.masked.sum(1) for masks in drawn])
    assert bool((counts == counts[:, :1]).all()), "one count for the whole batch"
    assert 8 <= counts.min() and counts.max() <= 18 and all(masks.kept.shape == (3, 12) for masks in drawn)
    for wrong in ((0.6, 0.5, 0.55, 0.1), (0.5, 1.0, 0.55, 0.0), (0.5, 1.0, math.nan, 0.1)):
        with pytest.raises(UserError):
            MAGEMasking(*wrong)


def test_guidance_grows_from_the_first_iteration_on() -> None:
    scale = MAGEOptions(num_inference_steps=4, guidance_scale=3.0).step_scale()
    assert callable(scale) and [scale(step) for step in range(4)] == [1.5, 2.0, 2.5, 3.0]


def test_smoothing_by_hand() -> None:
    logits, target = torch.tensor([[[2.0, 0.0, -1.0]]]), torch.tensor([[1]])
    log_p = logits[0, 0].log_softmax(0)
    expected = -(0.8 * log_p[1] + 0.2 * log_p.mean())
    assert smoothed_cross_entropy(logits, target, 0.2).item() == pytest.approx(expected.item())


def test_training_sees_its_loss_fall() -> None:
    torch.manual_seed(0)
    network = MAGETransformer(**(SIZES | {"condition": "none", "class_dropout_prob": 0.0, "dropout": 0.0, "token_std": 0.3}))
    objective = MAGEObjective(network, PixelTokenizer(4, 5, 1), torch.optim.AdamW, label_smoothing=0.0, sampling=SAMPLING)
    assert not objective.uses_labels and objective.frozen.keys() == {"tokenizer"}
    optimizer = torch.optim.AdamW(objective.parameter_groups("transformer"), lr=1e-2)
    batch: Any = {"tokens": torch.arange(16).remainder(5).expand(8, -1), "class_labels": torch.zeros(8, dtype=torch.int64)}
    losses = []
    for step in range(90):
        parts = objective.loss(objective.networks, batch, StepContext(step, 8 * step, torch.Generator().manual_seed(step)))
        (parts["loss"] / parts["denominator"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(parts["bits_per_token"]))
    assert losses[0] > 1.5 and sum(losses[-5:]) / 5 < 0.5
    with pytest.raises(UserError, match="label_dropout 0.1 needs a transformer with a null condition"):
        MAGEObjective(network, PixelTokenizer(4, 5, 1), torch.optim.AdamW, label_dropout=0.1, sampling=SAMPLING)
