"""MaskGIT's objective: the loss by hand, exact means over micro-batches, gradients, options."""

from __future__ import annotations

import math

import pytest
import torch
from seeded import generator
from torch import Tensor, nn

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.autoregressive.masked.maskgit_objective import MaskGITObjective
from generative.autoregressive.masking import MaskDraw, MaskingLaw, ScheduledMasking
from generative.autoregressive.options import MaskGITOptions
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.pixel import PixelTokenizer


class FixedMasks(MaskingLaw):
    def __init__(self, masked: list[list[int]], weights: list[float] | None = None) -> None:
        self.masked, self.weights = torch.tensor(masked).bool(), weights

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        return MaskDraw(self.masked, None if self.weights is None else torch.tensor(self.weights))


class FixedLogits(nn.Module):
    """Predicts the same logits everywhere and records what it was given."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, tokens: Tensor, class_labels: Tensor) -> Tensor:
        self.tokens, self.class_labels = tokens, class_labels
        return self.logits.expand(*tokens.shape, -1)


def make_objective(**options: object) -> MaskGITObjective:
    torch.manual_seed(0)
    transformer = MaskGITTransformer(3, 2, (2, 2), hidden_size=16, depth=1, num_heads=2, dropout=0.0)
    factory = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)  # noqa: E731
    given = {name: options.pop(name) for name in MaskGITOptions.names() if name in options}
    sampling = MaskGITOptions(**{"num_inference_steps": 3} | given)
    return MaskGITObjective(transformer, PixelTokenizer(2, 3), factory, sampling=sampling, **options)


TOKENS = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
BATCH = {"tokens": TOKENS, "class_labels": torch.tensor([0, 1])}


@pytest.mark.parametrize("weights", [None, [2.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_by_hand(smoothing: float, weights: list[float] | None) -> None:
    masking = FixedMasks([[1, 0, 1, 0], [0, 0, 0, 1]], weights)
    objective = make_objective(masking=masking, label_smoothing=smoothing, label_dropout=0.0)
    probabilities = [0.5, 0.3, 0.2]
    network = FixedLogits(probabilities)
    losses = objective.loss({"transformer": network}, BATCH, StepContext(0, 0, generator()))
    assert network.tokens.tolist() == [[3, 1, 3, 2], [1, 1, 0, 3]] and network.class_labels.tolist() == [0, 1]
    spread = -sum(math.log(p) for p in probabilities) / 3
    by_hand = [(1 - smoothing) * -math.log(p) + smoothing * spread for p in probabilities]
    w = weights or [1.0, 1.0]
    assert losses["loss"].item() == pytest.approx(w[0] * (by_hand[0] + by_hand[2]) + w[1] * by_hand[2], abs=1e-5)
    assert losses["denominator"].item() == 3
    nats = -(math.log(0.5) + 2 * math.log(0.2)) / 3
    assert losses["bits_per_token"].item() == pytest.approx(nats / math.log(2), abs=1e-5)
    assert losses["accuracy"].item() == pytest.approx(1 / 3)


def test_a_masked_mean_is_exact_over_micro_batches() -> None:
    """Sums and counts of parts add up to those of the whole, so the trainer's quotient is the mean of one large batch."""
    masked = [[1, 0, 1, 1], [0, 0, 0, 1]]
    whole = make_objective(masking=FixedMasks(masked), label_dropout=0.0)
    losses = whole.loss(whole.networks, BATCH, StepContext(0, 0, generator()))
    (losses["loss"] / losses["denominator"]).backward()
    expected = [p.grad.clone() for p in whole.networks["transformer"].parameters()]
    parts = make_objective(label_dropout=0.0)
    total = torch.tensor(0)
    for i in range(2):
        parts.masking = FixedMasks(masked[i : i + 1])
        part = {"tokens": TOKENS[i : i + 1], "class_labels": BATCH["class_labels"][i : i + 1]}
        losses = parts.loss(parts.networks, part, StepContext(0, 0, generator()))
        losses["loss"].backward()
        total = total + losses["denominator"]
    for parameter, gradient in zip(parts.networks["transformer"].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad / total, gradient, rtol=1e-4, atol=1e-7)


def test_images_and_cached_tokens_give_the_same_loss() -> None:
    objective = make_objective()
    grey = torch.tensor([[[-1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [-1.0, 1.0]]])
    images = {"images": grey[:, None].expand(-1, 3, -1, -1), "class_labels": BATCH["class_labels"]}
    losses = [
        objective.loss(objective.networks, batch, StepContext(0, 0, generator()))["loss"].item() for batch in (images, BATCH)
    ]
    assert losses[0] == losses[1]
    assert objective.loss(objective.networks, BATCH, StepContext(0, 0, generator(1)))["loss"].item() != losses[1], (
        "masks come of the generator"
    )


def test_it_learns_what_depends_on_the_class_and_trains_the_transformer_only() -> None:
    objective = make_objective(label_dropout=0.0, label_smoothing=0.0)
    optimizer = objective.optimizers["transformer"](objective.parameter_groups("transformer"))
    (phase,) = objective.phases()
    noise = generator()
    for _ in range(150):
        losses = phase.loss_fn(objective.networks, BATCH, StepContext(0, 0, noise))
        optimizer.zero_grad()
        (losses["loss"] / losses["denominator"]).backward()
        optimizer.step()
    assert losses["bits_per_token"] < 0.2
    assert all(p.grad is not None for p in objective.networks["transformer"].parameters())
    tokenizer = objective.frozen["tokenizer"]
    assert not tokenizer.training and all(not p.requires_grad for p in tokenizer.parameters())
    assert objective.encoder_fingerprint() == tokenizer.fingerprint
    pipeline = objective.pipeline({"transformer": objective.networks["transformer"].eval()})
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([0, 1], output_type="pt", generator=generator(), **objective.sampling_defaults()).images
    decoded = (images[:, 0].flatten(1) * 2).round().long()
    assert decoded.tolist() == TOKENS.tolist()


def test_parameter_groups_hold_every_parameter_once() -> None:
    objective = make_objective()
    decayed, others = objective.parameter_groups("transformer")
    names = {id(p): name for name, p in objective.networks["transformer"].named_parameters()}
    assert sorted(names[id(p)] for p in decayed["params"] + others["params"]) == sorted(names.values())
    assert others["weight_decay"] == 0 and all("embedding" not in names[id(p)] for p in decayed["params"])


def test_masks_of_the_unified_framework() -> None:
    objective = make_objective(masking=ScheduledMasking("linear", weighted=True, per_image=True), label_smoothing=0.0)
    records = [objective.loss(objective.networks, BATCH, StepContext(0, 0, generator(seed))) for seed in range(300)]
    assert min(record["denominator"].item() for record in records) == 0, "this distribution may mask nothing"
    assert all(value.isfinite() for record in records for value in record.values())
    # Weighted by 1 / p, a token counts once on average: the bound is L ln V for an even guess.
    average = sum(record["loss"].item() for record in records) / (300 * 2 * 4)
    assert average == pytest.approx(math.log(3), rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"temperature": 0.0}, "temperature"),
        ({"choice_temperature": -1.0}, "choice_temperature"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be in 1..4"),
        ({"num_inference_steps": 5}, "num_inference_steps must be in 1..4"),
        ({"guidance_scale": -2.0}, "guidance_scale"),
        ({"guidance_schedule": "quadratic"}, "guidance_schedule"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    transformer = MaskGITTransformer(3, 2, (2, 2), hidden_size=16, depth=1, num_heads=2)
    with pytest.raises(UserError, match="num_codes=3 but the tokenizer has 4 codes"):
        MaskGITObjective(transformer, PixelTokenizer(2, 4), torch.optim.AdamW)
    with pytest.raises(UserError, match=r"grid_size=\(2, 2\) but the tokenizer's grid is \(3, 3\)"):
        MaskGITObjective(transformer, PixelTokenizer(3, 3), torch.optim.AdamW)
