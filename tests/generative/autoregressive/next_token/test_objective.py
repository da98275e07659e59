"""Next-token objective: loss by hand, label dropout, parameter groups, learning."""

from __future__ import annotations

import math

import pytest
import torch
from seeded import generator
from torch import Tensor, nn

from generative.autoregressive.next_token.objective import AutoregressiveObjective
from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.options import NextTokenOptions
from generative.core.ema import HalfLifeEMA
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.pixel import PixelTokenizer


def make_objective(**options: object) -> AutoregressiveObjective:
    torch.manual_seed(0)
    transformer = ImageTransformer(3, 2, (2, 2), hidden_size=16, depth=1, num_heads=2, mlp_multiple_of=8, qk_norm=True)
    factory = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)  # noqa: E731
    given = {name: options.pop(name) for name in NextTokenOptions.names() if name in options}
    return AutoregressiveObjective(transformer, PixelTokenizer(2, 3), factory, sampling=NextTokenOptions(**given), **options)


def make_batch() -> dict[str, Tensor]:
    grey = torch.tensor([[[-1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [-1.0, 1.0]]])
    return {"images": grey[:, None].expand(-1, 3, -1, -1), "class_labels": torch.tensor([0, 1])}


class FixedLogits(nn.Module):
    """Predicts the same three logits everywhere and records the labels it was given."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, tokens: Tensor, class_labels: Tensor) -> Tensor:
        self.tokens, self.class_labels = tokens, class_labels
        return self.logits.expand(*tokens.shape, -1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_loss_by_hand(label_smoothing: float) -> None:
    objective = make_objective(label_dropout=0.0, label_smoothing=label_smoothing)
    probabilities = [0.5, 0.3, 0.2]
    network = FixedLogits([math.log(p) for p in probabilities])
    losses = objective.loss({"transformer": network}, make_batch(), StepContext(0, 0, generator()))
    assert network.tokens.tolist() == [[0, 1, 2, 2], [1, 1, 0, 2]]
    counts = [2, 3, 3]
    nats = -sum(n * math.log(p) for n, p in zip(counts, probabilities, strict=True)) / 8
    spread = -sum(math.log(p) for p in probabilities) / 3
    assert losses["loss"].item() == pytest.approx((1 - label_smoothing) * nats + label_smoothing * spread, abs=1e-6)
    assert losses["bits_per_token"].item() == pytest.approx(nats / math.log(2), abs=1e-6)
    assert losses["accuracy"].item() == pytest.approx(2 / 8)


def test_cached_tokens_replace_images() -> None:
    objective = make_objective()
    batch = make_batch()
    tokens = objective.frozen["tokenizer"].encode(batch["images"])
    from_images = objective.loss(objective.networks, batch, StepContext(0, 0, generator()))
    cached = {"tokens": tokens, "class_labels": batch["class_labels"]}
    assert objective.loss(objective.networks, cached, StepContext(0, 0, generator()))["loss"].item() == from_images["loss"].item()


def test_label_dropout() -> None:
    network = FixedLogits([0.0, 0.0, 0.0])
    make_objective(label_dropout=0.999999).loss({"transformer": network}, make_batch(), StepContext(0, 0, generator()))
    assert network.class_labels.tolist() == [2, 2]  # the network's null label


def test_parameter_groups_hold_every_parameter_once() -> None:
    objective = make_objective()
    decayed, others = objective.parameter_groups("transformer")
    network = objective.networks["transformer"]
    names = {id(p): name for name, p in network.named_parameters()}
    assert sorted(names[id(p)] for p in decayed["params"] + others["params"]) == sorted(names.values())
    assert "weight_decay" not in decayed and others["weight_decay"] == 0
    kept = {names[id(p)] for p in others["params"]}
    assert {"class_embedding.weight", "token_embedding.weight"} < kept
    assert all("embedding" in name or "norm" in name for name in kept)


def test_embeddings_may_be_decayed_too() -> None:
    objective = make_objective(decay_embeddings=True)
    decayed, others = objective.parameter_groups("transformer")
    assert any(p is objective.networks["transformer"].token_embedding.weight for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"]) and others["weight_decay"] == 0


def test_the_tokenizer_is_named_to_the_trainer() -> None:
    objective = make_objective()
    assert objective.encoder_fingerprint() == objective.tokenizer.fingerprint


def test_a_transformer_without_a_null_class_drops_no_labels() -> None:
    transformer = ImageTransformer(3, 2, (2, 2), hidden_size=16, depth=1, num_heads=2, null_class=False)
    for options in ({"label_dropout": 0.1}, {"label_dropout": 0.0, "sampling": NextTokenOptions(guidance_scale=2.0)}):
        with pytest.raises(UserError, match="null_class"):
            AutoregressiveObjective(transformer, PixelTokenizer(2, 3), torch.optim.AdamW, **options)
    AutoregressiveObjective(transformer, PixelTokenizer(2, 3), torch.optim.AdamW, label_dropout=0.0)


def test_the_loss_falls_on_one_batch_and_trains_the_transformer_only() -> None:
    objective = make_objective(label_dropout=0.0)
    optimizer = objective.optimizers["transformer"](objective.parameter_groups("transformer"))
    (phase,) = objective.phases()
    assert phase.networks == ("transformer",) and set(objective.networks) == {"transformer"}
    first = None
    for _ in range(60):
        loss = phase.loss_fn(objective.networks, make_batch(), StepContext(0, 0, generator()))["loss"]
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(3), abs=1e-5) and loss.item() < 0.05
    tokenizer = objective.frozen["tokenizer"]
    assert not tokenizer.training and all(not p.requires_grad for p in tokenizer.parameters())


def test_averages_and_sampling_options() -> None:
    assert make_objective().ema == {}
    objective = make_objective(ema=HalfLifeEMA(1000), guidance_scale=1.5, top_p=0.9)
    assert objective.ema["transformer"].network == "transformer"
    assert objective.num_classes == 2 and objective.image_size == 2
    pipeline = objective.pipeline(objective.networks)
    images = pipeline([0, 1], output_type="pt", **objective.sampling_defaults()).images
    assert images.shape == (2, 3, 2, 2)
    assert (
        objective.sampling_defaults() == NextTokenOptions(guidance_scale=1.5, top_p=0.9).to_dict() == pipeline.sampling_defaults
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"temperature": 0.0}, "temperature"),
        ({"guidance_scale": -2.0}, "guidance_scale"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    transformer = ImageTransformer(3, 2, (2, 2), hidden_size=16, depth=1, num_heads=2)
    with pytest.raises(UserError, match="num_codes=3 but the tokenizer has 4 codes"):
        AutoregressiveObjective(transformer, PixelTokenizer(2, 4), torch.optim.AdamW)
    with pytest.raises(UserError, match=r"grid_size=\(2, 2\) but the tokenizer's grid is \(3, 3\)"):
        AutoregressiveObjective(transformer, PixelTokenizer(3, 3), torch.optim.AdamW)
