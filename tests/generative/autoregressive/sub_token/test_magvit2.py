"""Open-MAGVIT2's transformer: sub-tokens, causality within and between positions, cache, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative.autoregressive.options import SubTokenOptions
from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.autoregressive.sub_token.objective import MAGVIT2Objective
from generative.autoregressive.sub_token.scheduler import SubTokenScheduler, sub_token_guidance
from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.tokenizers.pixel import PixelTokenizer

GRID = (2, 3)
LENGTH = 6
SIZES = {
    "hidden_size": 32,
    "depth": 2,
    "intra_depth": 1,
    "num_heads": 4,
    "mlp_multiple_of": 8,
    "num_classes": 3,
    "grid_size": GRID,
}
VARIANTS = {
    "two": {"num_codes": 32, "sub_token_bits": (2, 3)},
    "three": {"num_codes": 64, "sub_token_bits": (1, 2, 3)},
    "grouped": {"num_codes": 32, "sub_token_bits": (2, 3), "num_kv_heads": 1},
}


def make_transformer(**options: object) -> MAGVIT2Transformer:
    torch.manual_seed(0)
    transformer = MAGVIT2Transformer(**(SIZES | VARIANTS["two"] | {"initializer_range": 0.2} | options))
    for head in transformer.heads:
        torch.nn.init.normal_(head.weight)  # zero at first, which would hide everything below it
    return transformer.eval()


def make_inputs(transformer: MAGVIT2Transformer) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(transformer.config.num_codes, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    return tokens, torch.tensor([0, 1, 2, 3])


def test_ids_are_sub_tokens_the_lowest_bits_first() -> None:
    transformer = make_transformer(**VARIANTS["three"])
    tokens = torch.arange(64).reshape(1, 64)
    parts = transformer.split(tokens)
    assert parts[0, 45].tolist() == [1, 2, 5]  # 45 = 1 + 2 * 2 + 8 * 5
    assert torch.equal(transformer.join(parts), tokens)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_sub_token_moves_only_what_comes_after_it(options: dict[str, object]) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs(transformer)
    before = transformer(tokens, labels)
    parts = transformer.split(tokens)
    for position in (0, 3):
        for k in range(transformer.num_sub_tokens):
            changed = parts.clone()
            changed[:, position, k] ^= 1
            after = transformer(transformer.join(changed), labels)
            for other, (a, b) in enumerate(zip(after, before, strict=True)):
                moved = (a - b).abs().amax(dim=(0, 2)) > 1e-6  # (S,)
                assert not moved[:position].any() and moved[position + 1 :].all()
                assert bool(moved[position]) == (other > k)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_caches_give_the_full_forward(options: dict[str, object]) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs(transformer)
    expected = transformer(tokens, labels)
    parts = transformer.split(tokens)
    cache, intra = transformer.make_cache(4), transformer.make_intra_cache(4)
    for position in range(LENGTH):
        context = transformer.extend(position, parts[:, max(position - 1, 0)][:, None], cache, labels)[:, 0]
        for k in range(transformer.num_sub_tokens):
            logits = transformer.predict_sub_token(k, context, parts[:, position, :k], intra)
            torch.testing.assert_close(logits, expected[k][:, position], rtol=0, atol=5e-5)
            late = transformer.predict_sub_token(0, context, parts[:, position, :k], intra)  # all slots at once
            torch.testing.assert_close(late, logits, rtol=0, atol=5e-5)


@torch.no_grad()
def test_none_is_the_null_class_and_classes_matter() -> None:
    transformer = make_transformer()
    tokens, _ = make_inputs(transformer)
    null = transformer(tokens, torch.full((4,), 3))
    other = transformer(tokens, torch.zeros(4, dtype=torch.int64))
    for a, b, c in zip(transformer(tokens), null, other, strict=True):
        assert torch.equal(a, b) and not torch.allclose(a, c)


def make_objective(**options: object) -> MAGVIT2Objective:
    transformer = MAGVIT2Transformer(
        16, 2, (1, 3), grid_size=(2, 2), hidden_size=16, depth=1, intra_depth=1, num_heads=2, mlp_multiple_of=8,
        embedding_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    factory = lambda groups: torch.optim.AdamW(groups, lr=3e-3)  # noqa: E731
    given = {name: options.pop(name) for name in SubTokenOptions.names() if name in options}
    return MAGVIT2Objective(transformer, PixelTokenizer(2, 16), factory, sampling=SubTokenOptions(**given), **options)


def test_the_first_loss_is_that_of_uniform_guesses_and_falls() -> None:
    torch.manual_seed(0)
    objective = make_objective(label_dropout=0.0)
    batch = {"tokens": torch.tensor([[1, 7, 15, 0], [4, 4, 9, 2]]), "class_labels": torch.tensor([0, 1])}
    optimizer = objective.optimizers["transformer"](objective.parameter_groups("transformer"))
    losses = []
    for _ in range(60):
        result = objective.loss(objective.networks, batch, StepContext(0, 0, torch.Generator().manual_seed(0)))
        losses.append(result["loss"].item())
        assert result["loss"].item() == pytest.approx((result["loss_0"] + result["loss_1"]).item(), abs=1e-5)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(16), abs=1e-5) and losses[-1] < 0.5
    decayed, others = objective.parameter_groups("transformer")
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in others["params"]} == {1}


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        transformer = make_transformer()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        tokens, labels = make_inputs(transformer)
        torch.stack([logits.square().mean() for logits in transformer(tokens, labels)]).sum().backward()
        gradients.append([p.grad for p in transformer.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_options_of_each_sub_token() -> None:
    scale = sub_token_guidance(2, 5, (1.0, 3.0), "linear")
    assert [scale(t) for t in (0, 1, 8, 9)] == [1.0, 1.0, 1.0, 3.0]
    assert SubTokenScheduler(5, 2, (1.1, 1.0), (7, None)).options == [(1.1, 7, 1.0), (1.0, None, 1.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 48}, "num_codes must be a power of two"),
        ({"sub_token_bits": (5,)}, "two or more"),
        ({"sub_token_bits": (2, 2)}, "add up to the 5 bits"),
        ({"sub_token_bits": (0, 5)}, "positive"),
        ({"intra_depth": 0}, "intra_depth must be at least 1"),
        ({"embedding_dropout": 1.0}, "embedding_dropout"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_transformer(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": (1.0, 0.0)}, "temperature must be"),
        ({"temperature": (1.0, 1.0, 1.0)}, "one for each of the 2 sub-tokens"),
        ({"top_k": (0, 4)}, "top_k must be"),
        ({"guidance_scale": (1.0, -1.0)}, "guidance_scale must be"),
        ({"label_dropout": 1.0}, "label_dropout must be"),
    ],
)
def test_impossible_objectives_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)
