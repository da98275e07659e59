"""Residual quantisation: the greedy search by hand, shared codebooks, losses, dropout, float32 under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.residual_quantizer import ResidualQuantizer


def quantizer(depth: int = 3, shared: bool = False, dropout: float = 0.0, size: int = 16, dim: int = 4) -> ResidualQuantizer:
    network = ResidualQuantizer(depth, size, dim, shared, dropout)
    generator = torch.Generator().manual_seed(depth)
    with torch.no_grad():
        for index, table in enumerate(network.tables):
            table.copy_(torch.randn(size, dim, generator=generator) / 2**index)
    return network


def vectors(count: int = 20, dim: int = 4) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("shared", [False, True])
def test_each_depth_takes_the_nearest_code_of_what_is_left(shared: bool) -> None:
    network = quantizer(shared=shared)
    found = network.quantize(vectors())
    assert len(network.tables) == (1 if shared else 3)
    codebooks = network.codebooks_tensor
    assert codebooks.shape == (3, 16, 4)
    residual = vectors()
    for depth in range(3):
        torch.testing.assert_close(found.residuals[depth], residual)
        chosen = (residual[:, None] - codebooks[depth][None]).square().sum(-1).argmin(1)
        assert torch.equal(found.ids[:, depth], chosen)
        residual = residual - codebooks[depth][chosen]
        torch.testing.assert_close(found.cumulative[depth], vectors() - residual)
        torch.testing.assert_close(network.embed(found.ids[:, : depth + 1]), found.cumulative[depth])


def test_losses_of_a_grid_and_where_their_gradients_go() -> None:
    network = quantizer()
    latents = vectors(2 * 3 * 2).reshape(2, 3, 2, 4).movedim(-1, 1).requires_grad_(True)
    result = network(latents)
    found = network.quantize(vectors(12))
    errors = (found.cumulative.detach() - vectors(12)).square().mean(dim=(1, 2))
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(result.losses[name].detach(), errors.mean())
    torch.testing.assert_close(result.latents.detach(), found.cumulative[-1].reshape(2, 3, 2, 4).movedim(-1, 1))
    assert set(result.codes) == {"codebook_0", "codebook_1", "codebook_2"} == set(network.codebooks)
    assert torch.equal(result.codes["codebook_1"].vectors, found.residuals[1])
    assert torch.equal(result.codes["codebook_1"].ids, found.ids[:, 1])
    # The codebook loss moves codes only, each towards its own residual; the commitment loss moves latents only.
    by_latents = torch.autograd.grad(result.losses["codebook"], latents, retain_graph=True, allow_unused=True)[0]
    assert by_latents is None
    gradient = torch.autograd.grad(result.losses["codebook"], network.tables[1], retain_graph=True)[0]
    expected = torch.zeros(16, 4).index_add_(
        0, found.ids[:, 1], 2 * (found.codes[1] - found.residuals[1]).detach() / (3 * 12 * 4)
    )
    torch.testing.assert_close(gradient, expected)
    assert (
        torch.autograd.grad(result.losses["commitment"], list(network.tables), retain_graph=True, allow_unused=True)
        == (None,) * 3
    )
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad((result.latents * weights).sum(), latents)[0], weights)


def test_use_of_a_shared_codebook() -> None:
    network = quantizer(shared=True)
    use = network(vectors(4).reshape(1, 2, 2, 4).movedim(-1, 1)).codes["codebook"]
    found = network.quantize(vectors(4))
    assert use.ids.tolist() == [*found.ids[:, 0].tolist(), *found.ids[:, 1].tolist(), *found.ids[:, 2].tolist()]
    assert torch.equal(use.vectors[4:8], found.residuals[1]) and use.num_codes == 16


def test_dropout_cuts_whole_images_off_at_a_depth() -> None:
    network = quantizer(depth=4, dropout=1.0).train()
    batch = 64
    flat = vectors(batch * 4)
    latents = flat.reshape(batch, 2, 2, 4).movedim(-1, 1)
    result = network(latents, torch.Generator().manual_seed(0))
    cumulative = network.quantize(flat).cumulative.detach().reshape(4, batch, 2, 2, 4).movedim(-1, 2)
    errors = (result.latents.detach()[None] - cumulative).abs().amax(dim=(2, 3, 4))  # (depth, B)
    kept = errors.argmin(0) + 1
    assert float(errors.min(0).values.max()) < 1e-5
    assert kept.unique().tolist() == [1, 2, 3, 4]
    squares = (cumulative - latents[None]).square().mean(dim=(2, 3, 4))  # (depth, B)
    expected = torch.stack([squares[: int(count), image].mean() for image, count in enumerate(kept)]).mean()
    torch.testing.assert_close(result.losses["commitment"], expected)
    torch.testing.assert_close(result.losses["codebook"].detach(), expected)
    again = network(latents, torch.Generator().manual_seed(0))
    assert torch.equal(again.latents, result.latents)
    full = network.eval()(latents).latents
    torch.testing.assert_close(full, cumulative[-1])
    assert torch.equal(quantizer(depth=4).train()(latents).latents, full)


def test_autocast_changes_nothing() -> None:
    network = quantizer()
    with torch.autocast("cpu", torch.bfloat16):
        under = network.quantize(vectors())
        grid = network(vectors(4).reshape(1, 2, 2, 4).movedim(-1, 1))
    plain = network.quantize(vectors())
    assert torch.equal(under.ids, plain.ids) and torch.equal(under.codes, plain.codes)
    assert grid.latents.dtype == torch.float32


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UserError, match="depth must be at least 1, got 0"):
        ResidualQuantizer(0)
    with pytest.raises(UserError, match=r"quantizer_dropout must be in \[0, 1\], got 1.5"):
        ResidualQuantizer(2, 4, 4, quantizer_dropout=1.5)
    with pytest.raises(UserError, match="must be at least 2, got 1"):
        ResidualQuantizer(2, 1, 4)
    with pytest.raises(UserError, match=r"1 to 3 depths along their last axis, got \(2, 4\)"):
        quantizer().embed(torch.zeros(2, 4, dtype=torch.int64))
