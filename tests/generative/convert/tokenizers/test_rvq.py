"""Files of plain residual codebooks. Values are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch

from generative.convert import get_source, load_official
from generative.core.errors import UserError

CONFIG = {"depth": 3, "codebook_size": 8, "dim": 4, "separate_codebook_per_depth": True, "distance": "squared euclidean"}
CODEBOOKS = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))


def test_codebooks_of_each_depth() -> None:
    source = get_source("rvq")
    networks = source.build(CONFIG)
    load_official(source, networks, {"codebooks": CODEBOOKS})
    assert torch.equal(networks["model"].codebooks_tensor, CODEBOOKS)


@pytest.mark.parametrize("codebooks", [CODEBOOKS[0], CODEBOOKS[:1], CODEBOOKS[:1].expand(3, -1, -1)])
def test_a_shared_codebook_in_any_of_its_shapes(codebooks: torch.Tensor) -> None:
    source = get_source("rvq")
    networks = source.build(CONFIG | {"separate_codebook_per_depth": False})
    load_official(source, networks, {"model/codebooks": codebooks})
    assert torch.equal(networks["model"].codebooks_tensor, CODEBOOKS[:1].expand(3, -1, -1))


def test_codebooks_that_do_not_fit_are_refused() -> None:
    source = get_source("rvq")
    with pytest.raises(UserError, match="codebooks of the file differ; set it to true"):
        load_official(source, source.build(CONFIG | {"separate_codebook_per_depth": False}), {"codebooks": CODEBOOKS})
    with pytest.raises(UserError, match="has no place for tables.2"):
        load_official(source, source.build(CONFIG | {"depth": 2}), {"codebooks": CODEBOOKS})
    with pytest.raises(UserError, match="lacks tables.2"):
        load_official(source, source.build(CONFIG), {"codebooks": CODEBOOKS[:2]})
    with pytest.raises(UserError, match="other shapes for tables.0"):
        load_official(source, source.build(CONFIG | {"dim": 5}), {"codebooks": CODEBOOKS})
    with pytest.raises(UserError, match="no place for the official keys encoder.weight"):
        load_official(source, source.build(CONFIG), {"codebooks": CODEBOOKS, "encoder.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": "cosine"}, "distance='cosine' of RVQ is not supported here; supported: 'squared euclidean', 'euclidean'"),
        ({"depth": "3"}, "depth of RVQ must be a whole number, got '3'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"kmeans_init": True}, "'kmeans_init' of RVQ is unknown"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("rvq").build(CONFIG | change)


def test_recognition() -> None:
    source = get_source("rvq")
    expected = {"depth": 3, "codebook_size": 8, "dim": 4, "separate_codebook_per_depth": True}
    assert source.recognise({"codebooks": CODEBOOKS}) == expected
    assert source.recognise({"codebooks": CODEBOOKS, "x": CODEBOOKS}) is None
    assert source.recognise({"codebooks": CODEBOOKS[0]}) is None
    with pytest.raises(UserError, match="makes no images"):
        source.pipeline(source.build(CONFIG), CONFIG)
