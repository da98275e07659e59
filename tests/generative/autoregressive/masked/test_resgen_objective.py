"""ResGen's objective: targets and loss by hand, exact means over micro-batches, learning."""

from __future__ import annotations

import pytest
import torch
from seeded import generator
from torch import Tensor

from generative.autoregressive.masked.resgen import ResGenTransformer
from generative.autoregressive.masked.resgen_objective import ResGenObjective
from generative.autoregressive.masking import MaskDraw, MaskingLaw
from generative.autoregressive.options import ResGenOptions
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.rvq import RVQTokenizer


class FixedMasks(MaskingLaw):
    def __init__(self, masked: Tensor) -> None:
        self.masked = masked

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        return MaskDraw(self.masked)


def make_tokenizer() -> RVQTokenizer:
    torch.manual_seed(0)
    tokenizer = RVQTokenizer(
        image_size=4, depth=3, codebook_size=8, z_channels=4, ch=8, ch_mult=(1, 1), num_res_blocks=1, norm_groups=4
    )
    with torch.no_grad():
        for size, codebook in zip((3.0, 1.0, 0.3), tokenizer.codebooks.values(), strict=True):
            codebook.normal_().mul_(size)
    return tokenizer


def make_objective(**options: object) -> ResGenObjective:
    tokenizer = make_tokenizer()
    transformer = ResGenTransformer(
        3, 4, 2, (2, 2), hidden_size=32, depth=1, num_heads=2, dropout=0.0, num_mixtures=8, mixture_rank=3
    )
    factory = lambda groups: torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.01)  # noqa: E731
    given = {name: options.pop(name) for name in ResGenOptions.names() if name in options}
    sampling = ResGenOptions(**{"num_inference_steps": 4} | given)
    return ResGenObjective(transformer, tokenizer, factory, sampling=sampling, **options)


IDS = torch.randint(8, (2, 12), generator=generator(3))
BATCH = {"tokens": IDS, "class_labels": torch.tensor([0, 1])}
MASKED = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]).bool()


def test_the_loss_by_hand() -> None:
    """Position i of MASKED has so many codes masked as there are ones among its three, the deepest."""
    objective = make_objective(masking=FixedMasks(MASKED), posterior_std=0.0, label_dropout=0.0)
    network = objective.networks["transformer"].eval()
    assert not network.is_measured
    losses = objective.loss(objective.networks, BATCH, StepContext(0, 0, generator()))
    assert network.is_measured
    counts = torch.tensor([[0, 3, 2, 1], [3, 3, 3, 1]])
    codebooks = objective.tokenizer.codebooks_tensor
    ids = IDS.view(2, 4, 3)
    known, target = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    for b in range(2):
        for i in range(4):
            for j in range(3):
                (known if j < counts[b, i] else target)[b, i] += codebooks[j, ids[b, i, j]]
    mixture = network.mixture(network(known, counts, BATCH["class_labels"]))
    nats = -mixture.log_prob(target / network.scale_of(counts)) / 4
    assert losses["denominator"].item() == 4
    assert losses["loss"].item() == pytest.approx(nats[counts < 3].sum().item(), rel=1e-4)


def test_a_masked_mean_is_exact_over_micro_batches() -> None:
    whole = make_objective(masking=FixedMasks(MASKED), label_dropout=0.0, posterior_std=0.0)
    losses = whole.loss(whole.networks, BATCH, StepContext(0, 0, generator()))
    (losses["loss"] / losses["denominator"]).backward()
    expected = [p.grad.clone() for p in whole.networks["transformer"].parameters()]
    parts, total = make_objective(label_dropout=0.0, posterior_std=0.0), torch.tensor(0)
    parts.networks["transformer"].load_state_dict(whole.networks["transformer"].state_dict())  # with the scales measured
    for i in range(2):
        parts.masking = FixedMasks(MASKED[i : i + 1])
        part = {"tokens": IDS[i : i + 1], "class_labels": BATCH["class_labels"][i : i + 1]}
        losses = parts.loss(parts.networks, part, StepContext(0, 0, generator()))
        losses["loss"].backward()
        total = total + losses["denominator"]
    for parameter, gradient in zip(parts.networks["transformer"].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad / total, gradient, rtol=1e-3, atol=1e-6)


def test_scales_of_a_resumed_run_are_not_measured_again() -> None:
    objective = make_objective()
    objective.loss(objective.networks, BATCH, StepContext(0, 0, generator()))
    scales = objective.networks["transformer"].remainder_scales.clone()
    resumed = make_objective()
    resumed.networks["transformer"].load_state_dict(objective.networks["transformer"].state_dict())
    resumed.loss(resumed.networks, {**BATCH, "tokens": (IDS + 1) % 8}, StepContext(0, 0, generator()))
    assert torch.equal(resumed.networks["transformer"].remainder_scales, scales)


def test_a_batch_without_masks_teaches_nothing() -> None:
    objective = make_objective(masking=FixedMasks(torch.zeros(2, 12, dtype=torch.bool)))
    losses = objective.loss(objective.networks, BATCH, StepContext(0, 0, generator()))
    losses["loss"].backward()
    assert losses["loss"].item() == 0 and losses["denominator"].item() == 0 and losses["mean_square_error"].item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in objective.networks["transformer"].parameters())


def test_noise_of_the_posterior_comes_of_the_generator() -> None:
    objective = make_objective(masking=FixedMasks(MASKED), posterior_std=0.5)
    objective.networks["transformer"].eval()
    losses = [objective.loss(objective.networks, BATCH, StepContext(0, 0, generator(seed)))["loss"].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_it_learns_and_samples_what_it_learnt() -> None:
    """Two classes with one image each: after training, a class gives most of its codes back (by chance: 12 %)."""
    objective = make_objective(label_dropout=0.0)
    network = objective.networks["transformer"]
    optimizer = objective.optimizers["transformer"](objective.parameter_groups("transformer"))
    (phase,) = objective.phases()
    noise, first = generator(), None
    repeated = {name: value.repeat(4, *[1] * (value.ndim - 1)) for name, value in BATCH.items()}
    for _ in range(300):
        losses = phase.loss_fn(objective.networks, repeated, StepContext(0, 0, noise))
        mean = losses["loss"] / losses["denominator"]
        first = first or mean.item()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert mean.item() < first - 1.5
    assert all(p.grad is not None for p in network.parameters())
    assert all(not p.requires_grad for p in objective.frozen["tokenizer"].parameters())
    assert objective.encoder_fingerprint() == objective.tokenizer.fingerprint
    pipeline = objective.pipeline({"transformer": network.eval()})
    pipeline.set_progress_bar_config(disable=True)
    found: list[Tensor] = []
    original = pipeline.tokenizer.decode
    pipeline.tokenizer.decode = lambda ids: found.append(ids) or original(ids)
    pipeline([0, 1, 0, 1], output_type="pt", generator=generator(), **objective.sampling_defaults())
    agreement = (found[0] == IDS.repeat(2, 1)).float().mean().item()
    assert agreement > 0.7, f"only {agreement:.0%} of the codes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior_std": -0.1}, "posterior_std must be 0 or more"),
        ({"num_inference_steps": 13}, "num_inference_steps must be in 1..12"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"choice_temperature": -1.0}, "choice_temperature"),
        ({"label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)
