"""ResGen's network: what a prediction depends on, scales, sizes and tokenizers that do not fit."""

from __future__ import annotations

import pytest
import torch

from generative.autoregressive.masked.resgen import ResGenTransformer, check_residual_match
from generative.core.errors import UserError
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.rvq import RVQTokenizer


def make(**options: object) -> ResGenTransformer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "num_mixtures": 3, "mixture_rank": 2}
    return ResGenTransformer(**{"code_depth": 3, "code_dim": 4, "num_classes": 2, "grid_size": (2, 2), **sizes, **options}).eval()


def make_tokenizer(**options: object) -> RVQTokenizer:
    sizes = {"image_size": 4, "depth": 3, "codebook_size": 8, "z_channels": 4}
    return RVQTokenizer(ch=8, ch_mult=(1, 1), num_res_blocks=1, norm_groups=4, **{**sizes, **options})


@torch.no_grad()
def test_it_reads_codes_counts_places_and_class() -> None:
    network = make()
    known, counts, label = torch.randn(1, 4, 4), torch.tensor([[0, 1, 2, 3]]), torch.tensor([1])
    prediction = network(known, counts, label)
    assert prediction.shape == (1, 4, 3 * (2 + 2) + 4)
    for place in range(4):
        moved, counted = known.clone(), counts.clone()
        moved[0, place] += 1
        counted[0, place] = (counts[0, place] + 1) % 4
        for other in (network(moved, counts, label), network(known, counted, label)):
            assert ((other - prediction).abs().amax(-1) > 1e-6).all()
    assert not torch.allclose(network(known, counts, torch.tensor([0])), prediction)
    torch.testing.assert_close(network(known, counts), network(known, counts, torch.tensor([2])))
    assert not torch.allclose(network(known.flip(1), counts.flip(1), label).flip(1), prediction)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_its_batch() -> None:
    network = make()
    known, counts, labels = torch.randn(3, 4, 4), torch.randint(4, (3, 4)), torch.tensor([0, 2, 1])
    together = network(known, counts, labels)
    for i in range(3):
        torch.testing.assert_close(
            network(known[i : i + 1], counts[i : i + 1], labels[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5
        )


def test_scales_are_measured() -> None:
    network = make()
    sizes = torch.tensor([4.0, 2.0, 0.5])
    codes = torch.randn(50, 4, 3, 4, generator=torch.Generator().manual_seed(0)) * sizes[:, None]
    assert not network.is_measured and (network.remainder_scales == 1).all()
    network.measure_remainder_scales(codes)
    assert network.is_measured
    for known in range(3):
        measured = codes[:, :, known:].sum(2).square().mean().sqrt()
        assert network.scale_of(torch.tensor(known)).item() == pytest.approx(measured.item(), rel=1e-5)
    assert network.scale_of(torch.tensor([[3, 0]])).shape == (1, 2, 1)
    assert {"remainder_scales", "is_measured"} < set(network.state_dict()), "a saved network brings them"
    # Scaling codes and known sums alike changes nothing: the network sees both in units of the codes.
    known, counts = torch.randn(1, 4, 4), torch.tensor([[0, 1, 2, 3]])
    before = network(known, counts)
    network.measure_remainder_scales(codes * 7)
    torch.testing.assert_close(network(known * 7, counts), before, rtol=1e-4, atol=1e-5)


def test_the_guided_part_leaves_scales_out() -> None:
    network = make()
    prediction = network(torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.int64))
    changed = torch.cat([prediction[..., : network.num_guided] * 3, prediction[..., network.num_guided :]], dim=-1)
    a, b = network.mixture(prediction), network.mixture(changed)
    assert torch.equal(a.scales, b.scales)
    torch.testing.assert_close(b.logits, 3 * a.logits)
    torch.testing.assert_close(b.center, 3 * a.center)
    torch.testing.assert_close(b.low_rank_means, 3 * a.low_rank_means)


def test_every_parameter_gets_a_gradient() -> None:
    network = make()
    mixture = network.mixture(network(torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 1])))
    mixture.log_prob(torch.randn(2, 4, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture_rank": 5}, "mixture_rank must be at most code_dim 4, got 5"),
        ({"mixture_rank": 0}, "mixture_rank must be at least 1, got 0"),
        ({"num_mixtures": 0}, "num_mixtures must be at least 1, got 0"),
        ({"code_depth": 0}, "code_depth must be at least 1, got 0"),
        ({"min_scale": 0.0}, "min_scale must be positive, got 0.0"),
        ({"num_heads": 3}, "num_heads must divide hidden_size 16, got 3"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_tokenizers_that_do_not_fit_are_refused() -> None:
    check_residual_match(make(), make_tokenizer())
    for options, message in (
        ({"depth": 2}, "code_depth=3 but the tokenizer has 2 codes a vector"),
        ({"z_channels": 8}, "code_dim=4 but the tokenizer's codes have 8 values"),
        ({"image_size": 8}, r"grid_size=\(2, 2\) but the tokenizer's grid is \(4, 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            check_residual_match(make(), make_tokenizer(**options))
    with pytest.raises(UserError, match="needs a tokenizer with residual codes .* got PixelTokenizer"):
        check_residual_match(make(), PixelTokenizer(2, 8))
