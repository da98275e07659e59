"""Lookup-free quantisation: bits, sub-codebooks, and entropies against sums over all codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.lookup_free_quantizer import LookupFreeQuantizer, check_factors, join_ids, split_ids


def all_codes(num_bits: int) -> Tensor:
    """(2^D, D) codes in the order of their ids, spelt out."""
    return torch.tensor([[1.0 if index >> bit & 1 else -1.0 for bit in range(num_bits)] for index in range(2**num_bits)])


def brute_force(vectors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Entropies by summing over all codes, in the dtype of the vectors."""
    logits = 2 * vectors @ all_codes(vectors.shape[1]).to(vectors).T / temperature
    probabilities, log_probabilities = logits.softmax(-1), logits.log_softmax(-1)
    mean = probabilities.mean(0)
    return -(probabilities * log_probabilities).sum(-1).mean(), -(mean * (mean + 1e-5).log()).sum()


@pytest.mark.parametrize("num_bits", [1, 2, 5, 8])
@pytest.mark.parametrize("spread", [0.003, 0.02, 1.0])
def test_entropies_are_sums_over_all_codes(num_bits: int, spread: float) -> None:
    vectors = spread * torch.randn(24, num_bits, generator=torch.Generator().manual_seed(num_bits))
    ours = vectors.clone().requires_grad_(True)
    exact = vectors.double().requires_grad_(True)
    for index, (value, expected) in enumerate(
        zip(LookupFreeQuantizer(num_bits).entropies(ours), brute_force(exact, 0.01), strict=True)
    ):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=2e-6, msg=f"entropy {index}")
        gradient = torch.autograd.grad(value, ours, retain_graph=True)[0].double()
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, exact, retain_graph=True)[0], rtol=1e-3, atol=1e-4)


def test_entropies_at_their_extremes() -> None:
    """Undecided vectors: D ln 2 each. Sure of all codes alike: 0, and D ln 2 for the codebook."""
    num_bits = 6
    quantizer = LookupFreeQuantizer(num_bits)
    for vectors, sample in ((torch.zeros(3, num_bits), num_bits), (all_codes(num_bits), 0)):
        sample_entropy, codebook_entropy = quantizer.entropies(vectors)
        assert sample_entropy.item() == pytest.approx(sample * 0.6931472, abs=1e-5)
        # The logarithm has 1e-5 added: V ln-terms of 1 / V.
        assert codebook_entropy.item() == pytest.approx(-torch.tensor(2**-num_bits + 1e-5).log().item(), abs=1e-5)


def test_the_published_codebook_fits_in_memory() -> None:
    """2^18 codes for 512 tokens: the table that the official code makes would take 512 MiB in each of its copies."""
    vectors = torch.randn(512, 18, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    sample_entropy, codebook_entropy = LookupFreeQuantizer(18).entropies(vectors)
    (sample_entropy - codebook_entropy).backward()
    assert 0 < codebook_entropy.item() < 18 * 0.6931472 and vectors.grad is not None and torch.isfinite(vectors.grad).all()


def test_bit_k_is_channel_k() -> None:
    quantizer = LookupFreeQuantizer(3)
    vectors = torch.tensor([[0.5, -0.1, -3.0], [-1.0, 0.0, 0.2], [1e-8, 2.0, 4.0]])
    assert quantizer.to_ids(vectors).tolist() == [1, 4, 7]
    assert quantizer.to_codes(vectors).tolist() == [[1, -1, -1], [-1, -1, 1], [1, 1, 1]]
    ids = torch.arange(8)
    torch.testing.assert_close(quantizer.ids_to_codes(ids), all_codes(3))
    assert quantizer.to_ids(quantizer.ids_to_codes(ids.reshape(2, 4))).tolist() == ids.reshape(2, 4).tolist()


@pytest.mark.parametrize("bits", [(6, 12), (9, 9), (18,), (1, 2, 15)])
def test_sub_codebooks(bits: tuple[int, ...]) -> None:
    ids = torch.randint(2**18, (4, 5), generator=torch.Generator().manual_seed(0))
    parts = split_ids(ids, bits)
    assert torch.equal(join_ids(parts, bits), ids)
    assert all(0 <= int(part.min()) and int(part.max()) < 2**count for part, count in zip(parts, bits, strict=True))
    assert torch.equal(parts[0], ids % 2 ** bits[0])
    codes = LookupFreeQuantizer(18).ids_to_codes(ids)
    pieces = [LookupFreeQuantizer(count).ids_to_codes(part) for part, count in zip(parts, bits, strict=True)]
    assert torch.equal(torch.cat(pieces, dim=-1), codes)


def test_losses_and_gradients_of_a_grid() -> None:
    quantizer = LookupFreeQuantizer(4, sample_entropy_weight=0.5, codebook_entropy_weight=2.0)
    latents = (0.1 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    found = quantizer(latents)
    assert torch.equal(found.latents.detach().sign(), quantizer.to_codes(latents))
    sample_entropy, codebook_entropy = quantizer.entropies(latents.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(found.losses["entropy"], 0.5 * sample_entropy - 2 * codebook_entropy)
    torch.testing.assert_close(found.losses["commitment"], ((1 - latents.abs()) ** 2).mean())
    assert found.use.num_codes == 16 and found.use.vectors is None and found.use.ids.shape == (18,)
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad((found.latents * weights).sum(), latents)[0], weights)


def test_autocast_changes_nothing() -> None:
    quantizer = LookupFreeQuantizer(8)
    latents = 0.01 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latents)
    assert found.latents.dtype == torch.float32 and torch.equal(found.latents, expected.latents)
    assert torch.equal(found.losses["entropy"], expected.losses["entropy"])


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="num_bits must be 1 to 24, got 0"):
        LookupFreeQuantizer(0)
    with pytest.raises(UserError, match="num_bits must be 1 to 24, got 25"):
        LookupFreeQuantizer(25)
    with pytest.raises(UserError, match="temperature of the entropies must be positive, got 0"):
        LookupFreeQuantizer(4, temperature=0.0)
    for bits in ((6, 11), (18, 0), (), (-1, 19)):
        with pytest.raises(UserError, match=r"factorized_bits must be positive and add up to the 18 bits of a code, got \["):
            check_factors(bits, 18)
    check_factors((6, 12), 18)
