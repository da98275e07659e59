"""Singular values u W v of stored spectral norms."""

from __future__ import annotations

import pytest
import torch

from generative.convert.gan.spectral import add_singular_values


@pytest.mark.parametrize("is_transposed", [False, True])
def test_leading_vectors_give_the_largest_singular_value(is_transposed: bool) -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    ours = weight.transpose(0, 1) if is_transposed else weight
    state = {"conv.weight": ours, "conv.spectral_norm.u": left[:, 0][None], "conv.spectral_norm.v": right[0][None]}
    add_singular_values(state, ("conv",) if is_transposed else ())
    torch.testing.assert_close(state["conv.spectral_norm.singular_values"], values[:1])


def test_what_does_not_fit_is_left_to_the_loader() -> None:
    state = {"a.spectral_norm.u": torch.ones(1, 4), "b.spectral_norm.u": torch.ones(1, 4), "b.spectral_norm.v": torch.ones(1, 5)}
    state |= {"b.weight": torch.ones(4, 3), "c.weight": torch.ones(4, 3)}
    add_singular_values(state)
    added = {key: value.tolist() for key, value in state.items() if key.endswith("singular_values")}
    assert added == {"a.spectral_norm.singular_values": [1.0], "b.spectral_norm.singular_values": [1.0]}
