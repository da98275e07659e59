"""The record of what a scoring run is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.cli import build_parser, parse_arguments
from metrics.options import ScoreOptions, read_options, reader


def options(**values: Any) -> ScoreOptions:
    return read_options(["a", "b"], True, values)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (
            ["--metrics", "fid, kid", "--weights", "w.pth", "--json"],
            {"metrics": ["fid", "kid"], "weights": Path("w.pth"), "json": True},
        ),
        (["-b", "7", "--dims", "64", "--quiet"], {"batch_size": np.int64(7), "dims": "64", "quiet": True}),
        (["--extractor", "inception-v3-compat", "--fid", "-k"], {"extractor": "inception-v3", "metrics": ("fid", "kid")}),
        (["--gpu", "3", "--mode", "legacy_pytorch"], {"device": "cuda:3", "protocol": "pytorch-fid"}),
        (["--cpu", "--dataset", "cifar10", "--dataset-res", "32"], {"device": "cpu", "dataset": "cifar10", "dataset_res": 32}),
        (
            ["--match-classes", "top1", "--match-num", "5"],
            {"match_classes": "top1", "match_num": 5, "csv": None},
        ),
    ],
)
def test_flags_and_keywords_give_one_record(words: list[str], values: dict[str, Any]) -> None:
    assert parse_arguments(["a", "b", *words]) == options(**values)


def test_every_flag_is_an_option_and_every_option_a_flag() -> None:
    flags = {action.dest for action in build_parser()._actions} - {"help", "path"}
    for name in flags:
        reader(name)
    ours = {each.name for each in dataclasses.fields(ScoreOptions)} - {"paths", "has_reference", "is_fidelity_line"}
    assert ours <= flags


def test_an_option_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        options().batch_size = 3  # type: ignore[misc]


def test_torch_fidelitys_line() -> None:
    line = parse_arguments(["--input1", "b", "--input2", "a", "--isc"])
    assert (line.paths, line.has_reference, line.protocol, line.metrics) == (("a", "b"), True, "tensorflow", ("is",))
    assert line.is_fidelity_line and not parse_arguments(["--input1", "b", "--isc"]).has_reference


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": 0}, "argument --batch-size: must be at least 1, got 0."),
        ({"kid_subsets": 2.5}, "argument --kid-subsets: must be a whole number from 1 to 1,000,000, got '2.5'."),
        ({"seed": 2**64}, "argument --seed: must be at most 18,446,744,073,709,551,615, got 18446744073709551616."),
        ({"protocol": "bogus"}, "argument --protocol: invalid choice: 'bogus'"),
        ({"dims": 5}, "argument --dims: invalid choice: '5'"),
        ({"extractor": "resnet"}, "argument --extractor: 'resnet' is not known"),
        ({"quiet": 1}, "argument --quiet: must be True or False, got 1."),
        ({"csv": True}, "argument --csv: expected one argument."),
        ({"metrics": " ,"}, "argument --metrics: names no metric, got ' ,': try --metrics fid."),
        ({"metrics": []}, "argument --metrics: names no metric, got ''"),
        ({"dims": 64, "extractor": "resnet50"}, "--dims chooses a feature of inception-v3"),
        ({"match_num": 3}, "--match-num counts the samples"),
        ({"dataset_res": 32}, "--dataset-res says more of --dataset"),
        ({"dataset": "cifar10", "train_extractor": True}, "does not go with --train-extractor"),
        ({"input1": "c"}, "--input1 and --input2 replace the two paths"),
        ({"cpu": True, "gpu": 0}, "give one of them"),
        ({"mode": "clean", "protocol": "adm"}, "--mode clean is --protocol clean, got --protocol adm"),
    ],
)
def test_what_is_refused_is_refused_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", "[(]").replace("+", "[+]")) as caught:
        options(**values)
    assert str(caught.value).endswith(".") or "choose from" in str(caught.value)


def test_paths_are_needed() -> None:
    with pytest.raises(ValueError, match="required: PATH"):
        read_options([], False, {})
    with pytest.raises(ValueError, match="a path is empty"):
        read_options(["a", ""], True, {})
    with pytest.raises(ValueError, match="takes two paths, images and the .npz"):
        read_options(["a", "b", "c"], True, {"save_stats": True})
    with pytest.raises(TypeError, match="no option 'batchsize'"):
        read_options(["a"], False, {"batchsize": 3})
