"""Next-scale objective: loss by hand, statistics of the last scale, cached tokens, parameter groups, learning, wrong options."""

from __future__ import annotations

import math

import pytest
import torch
from seeded import generator
from torch import Tensor, nn

from generative.autoregressive.next_scale.objective import VARObjective
from generative.autoregressive.next_scale.var import VAR
from generative.autoregressive.options import VAROptions
from generative.core.ema import HalfLifeEMA
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer


def make_tokenizer() -> MultiScaleVQTokenizer:
    torch.manual_seed(0)
    return MultiScaleVQTokenizer(
        image_size=4, num_codes=6, latent_channels=4, patch_nums=(1, 2), ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2
    )


def make_objective(**options: object) -> VARObjective:
    tokenizer = make_tokenizer()
    network = VAR(
        num_codes=6, num_classes=2, latent_channels=4, patch_nums=(1, 2), hidden_size=16, depth=1, num_heads=2,
        adaln_gain_init=0.1, shared_adaln=bool(options.pop("shared_adaln", False)),
    )  # fmt: skip
    factory = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)  # noqa: E731
    given = {name: options.pop(name) for name in VAROptions.names() if name in options}
    return VARObjective(network, tokenizer, factory, sampling=VAROptions(**given), **options)


def make_batch() -> dict[str, Tensor]:
    return {"tokens": torch.tensor([[0, 1, 2, 3, 3], [5, 0, 1, 1, 0]]), "class_labels": torch.tensor([0, 1])}


class FixedLogits(nn.Module):
    """Predicts the same logits everywhere and records what it was given."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, inputs: Tensor, class_labels: Tensor) -> Tensor:
        self.inputs, self.class_labels = inputs, class_labels
        return self.logits.expand(len(inputs), inputs.shape[1] + 1, -1).clone()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_loss_by_hand(label_smoothing: float) -> None:
    objective = make_objective(label_dropout=0.0, label_smoothing=label_smoothing)
    probabilities = [0.1, 0.3, 0.2, 0.2, 0.1, 0.1]
    network = FixedLogits(probabilities)
    losses = objective.loss({"transformer": network}, make_batch(), StepContext(0, 0, generator()))
    logs = [math.log(p) for p in probabilities]
    first, last = [0, 5], [1, 2, 3, 3, 0, 1, 1, 0]
    nats = -sum(logs[token] for token in first + last) / 10
    assert losses["loss"].item() == pytest.approx((1 - label_smoothing) * nats - label_smoothing * sum(logs) / 6, abs=1e-6)
    assert losses["last_scale_loss"].item() == pytest.approx(-sum(logs[token] for token in last) / 8, abs=1e-6)
    assert losses["accuracy"].item() == pytest.approx(3 / 10)
    assert losses["last_scale_accuracy"].item() == pytest.approx(3 / 8)
    torch.testing.assert_close(network.inputs, objective.tokenizer.teacher_inputs(make_batch()["tokens"]))


def test_statistics_and_loss_are_of_the_same_logits_while_training() -> None:
    objective = make_objective(label_dropout=0.0)
    network, batch = objective.networks["transformer"].train(), make_batch()
    losses = objective.loss(objective.networks, batch, StepContext(0, 0, generator()))
    with torch.no_grad():
        logits = network(objective.tokenizer.teacher_inputs(batch["tokens"]), batch["class_labels"])
    nats = nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten(), reduction="none").view(2, 5)
    assert losses["loss"].item() == pytest.approx(nats.mean().item(), abs=1e-6)
    assert losses["last_scale_loss"].item() == pytest.approx(nats[:, 1:].mean().item(), abs=1e-6)


def test_images_are_encoded_where_there_are_no_tokens() -> None:
    objective = make_objective()
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    labels = make_batch()["class_labels"]
    encoded = objective.loss(objective.networks, {"images": images, "class_labels": labels}, StepContext(0, 0, generator()))
    tokens = objective.tokenizer.encode(images)
    cached = objective.loss(objective.networks, {"tokens": tokens, "class_labels": labels}, StepContext(0, 0, generator()))
    assert cached["loss"].item() == encoded["loss"].item()
    assert objective.encoder_fingerprint() == objective.tokenizer.fingerprint


def test_label_dropout() -> None:
    network = FixedLogits([1 / 6] * 6)
    make_objective(label_dropout=0.999999).loss({"transformer": network}, make_batch(), StepContext(0, 0, generator()))
    assert network.class_labels.tolist() == [2, 2]


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_parameter_groups_are_the_official_ones(shared_adaln: bool) -> None:
    objective = make_objective(shared_adaln=shared_adaln)
    decayed, others = objective.parameter_groups("transformer")
    names = {id(p): name for name, p in objective.networks["transformer"].named_parameters()}
    assert sorted(names[id(p)] for p in decayed["params"] + others["params"]) == sorted(names.values())
    assert "weight_decay" not in decayed and others["weight_decay"] == 0
    expected = {"input_projection.weight", "class_embedding.weight", "head_modulation.weight", "head.weight"}
    expected |= {f"blocks.0.{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2")}
    expected |= {"shared_modulation.weight"} if shared_adaln else {"blocks.0.modulation.weight"}
    assert {names[id(p)] for p in decayed["params"]} == expected


def test_the_loss_falls_on_one_batch_and_trains_the_transformer_only() -> None:
    objective = make_objective(label_dropout=0.0)
    optimizer = objective.optimizers["transformer"](objective.parameter_groups("transformer"))
    (phase,) = objective.phases()
    assert phase.networks == ("transformer",) and set(objective.networks) == {"transformer"}
    first = None
    for _ in range(80):
        loss = phase.loss_fn(objective.networks, make_batch(), StepContext(0, 0, generator()))["loss"]
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(6), abs=0.02) and loss.item() < 0.1
    tokenizer = objective.frozen["tokenizer"]
    assert not tokenizer.training and all(not p.requires_grad for p in tokenizer.parameters())


def test_averages_and_sampling_options() -> None:
    assert make_objective().ema == {}
    objective = make_objective(ema=HalfLifeEMA(1000), guidance_scale=2.5, top_k=4, more_smooth=True)
    assert objective.ema["transformer"].network == "transformer"
    assert objective.num_classes == 2 and objective.image_size == 4
    pipeline = objective.pipeline(objective.networks)
    assert pipeline([0, 1], output_type="pt", **objective.sampling_defaults()).images.shape == (2, 3, 4, 4)
    assert pipeline.sampling_defaults == objective.sampling_defaults()
    assert objective.sampling_defaults()["guidance_schedule"] == "linear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"top_k": 0}, "top_k"),
        ({"guidance_scale": -2.0}, "guidance_scale"),
        ({"guidance_schedule": "steep"}, "guidance_schedule"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    network = VAR(num_codes=9, num_classes=2, latent_channels=4, patch_nums=(1, 2), hidden_size=8, depth=1, num_heads=1)
    with pytest.raises(UserError, match="num_codes=9 but the tokenizer has 6"):
        VARObjective(network, make_tokenizer(), torch.optim.AdamW)
