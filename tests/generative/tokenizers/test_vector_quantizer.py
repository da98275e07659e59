"""Nearest codes, straight-through gradients, losses and the entropy loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from generative.core.errors import UserError
from generative.tokenizers import vector_quantizer
from generative.tokenizers.vector_quantizer import VectorQuantizer, entropy_loss, nearest_codes


def quantizer_of(codes: list[list[float]], **options: bool) -> VectorQuantizer:
    quantizer = VectorQuantizer(len(codes), len(codes[0]), **options)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor(codes))
    return quantizer


@pytest.mark.parametrize("max_distances", [1, 100, 2**22])
def test_the_nearest_code_is_found_whatever_the_memory(max_distances: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(57, 5, generator=generator), torch.randn(40, 5, generator=generator)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook, max_distances), expected)


def test_of_equals_the_first_is_taken() -> None:
    assert nearest_codes(torch.zeros(2, 1), torch.tensor([[2.0], [-1.0], [1.0]])).tolist() == [1, 1]


def test_losses_and_gradients_of_an_example() -> None:
    quantizer = quantizer_of([[0.0, 0.0], [4.0, 0.0]])
    latents = torch.tensor([[[[1.0, 3.0]], [[1.0, 2.0]]]], requires_grad=True)  # (1, 2, 1, 2): vectors (1, 1) and (3, 2)
    found = quantizer(latents)
    assert found.use.ids.tolist() == [0, 1] and found.use.num_codes == 2
    assert found.latents.tolist() == [[[[0.0, 4.0]], [[0.0, 0.0]]]]
    assert found.use.vectors.tolist() == [[1, 1], [3, 2]] and not found.use.vectors.requires_grad
    mean = (1 + 1 + 1 + 4) / 4
    assert found.losses["codebook"].item() == found.losses["commitment"].item() == pytest.approx(mean)
    weights = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    (gradient,) = torch.autograd.grad((found.latents * weights).sum(), latents, retain_graph=True)
    assert torch.equal(gradient, weights)  # straight through
    (gradient,) = torch.autograd.grad(found.losses["codebook"], quantizer.codebook, retain_graph=True)
    assert gradient.tolist() == [[-0.5, -0.5], [0.5, -1.0]]  # 2 (e - z) / 4
    (gradient,) = torch.autograd.grad(found.losses["commitment"], latents)
    assert gradient.tolist() == [[[[0.5, -0.5]], [[0.5, 1.0]]]]


def test_normalised_codes() -> None:
    quantizer = quantizer_of([[3.0, 0.0], [0.0, 0.1]], l2_norm=True)
    latents = torch.tensor([5.0, 4.9]).reshape(1, 2, 1, 1)
    assert quantizer.encode(latents).tolist() == [[0]]
    torch.testing.assert_close(quantizer(latents).latents.flatten(), torch.tensor([1.0, 0.0]))
    assert quantizer.encode(latents * 1e-3).tolist() == [[0]]  # lengths mean nothing, the codes' neither
    torch.testing.assert_close(quantizer.codes, torch.eye(2))
    torch.testing.assert_close(quantizer(latents).use.vectors.norm(dim=1), torch.ones(1))


def test_encode_is_what_forward_uses_in_raster_order() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 3, l2_norm=True)
    latents = torch.randn(2, 3, 2, 4)
    ids = quantizer.encode(latents)
    assert ids.shape == (2, 8) and torch.equal(ids.flatten(), quantizer(latents).use.ids)
    at = F.normalize(latents[1, :, 1, 2], dim=0)  # the seventh vector of the second image
    assert ids[1, 6] == torch.cdist(at[None], quantizer.codes.detach())[0].argmin()


def plain_entropy_loss(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distances = (vectors[:, None] - codebook[None]).square().sum(-1)
    probabilities = torch.softmax(-distances / 0.01, dim=-1)
    own = -(probabilities * torch.log_softmax(-distances / 0.01, dim=-1)).sum(-1).mean()
    mean = probabilities.mean(0)
    return own + (mean * (mean + 1e-5).log()).sum()


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_the_entropy_loss_and_its_gradients_in_blocks(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_quantizer, "MAX_AFFINITIES", 24 * 10 // num_blocks)
    generator = torch.Generator().manual_seed(1)
    vectors = (torch.randn(24, 3, generator=generator) / 5).requires_grad_()
    codebook = (torch.randn(10, 3, generator=generator) / 5).requires_grad_()
    ours, plain = entropy_loss(vectors, codebook), plain_entropy_loss(vectors, codebook)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(plain, [vectors, codebook])
    torch.testing.assert_close(torch.autograd.grad(ours, [vectors, codebook]), expected, rtol=1e-4, atol=1e-5)


def test_sure_and_even_use_has_the_least_entropy_loss() -> None:
    even = entropy_loss(torch.eye(4).repeat(3, 1), torch.eye(4))
    assert even.item() == pytest.approx(-math.log(4), abs=1e-3)
    assert entropy_loss(torch.eye(4)[:1].repeat(8, 1), torch.eye(4)).item() == pytest.approx(0, abs=1e-3)


def test_the_entropy_loss_is_there_when_asked_for() -> None:
    latents = torch.randn(1, 2, 2, 2)
    assert set(VectorQuantizer(4, 2)(latents).losses) == {"codebook", "commitment"}
    assert set(VectorQuantizer(4, 2, entropy=True)(latents).losses) == {"codebook", "commitment", "entropy"}


def test_autocast_does_not_reach_the_quantiser() -> None:
    torch.manual_seed(0)
    quantizer, latents = VectorQuantizer(64, 4, entropy=True), torch.randn(2, 4, 3, 3) / 64
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), expected.use.ids.reshape(2, 9))
    assert torch.equal(found.use.ids, expected.use.ids) and torch.equal(found.latents, expected.latents)
    assert {name: value.item() for name, value in found.losses.items()} == {
        name: value.item() for name, value in expected.losses.items()
    }


@pytest.mark.parametrize(
    ("num_codes", "dim", "message"), [(1, 4, "num_codes must be at least 2, got 1"), (4, 0, "width must be at least 1")]
)
def test_impossible_codebooks_are_refused(num_codes: int, dim: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VectorQuantizer(num_codes, dim)
