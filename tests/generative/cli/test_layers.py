"""Several configurations laid over one another: what is merged, what a message names, and every published size."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from published_sizes import PAPERS, PUBLISHED, agrees

from generative.cli.config import dump_config, parse_train_config
from generative.cli.config_files import find_config, list_configs, list_overlays, shipped_files
from generative.cli.layers import merge
from generative.cli.main import main
from generative.core.errors import UserError

BASE = "digits/dit"


@pytest.mark.parametrize(
    ("earlier", "later", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        (
            {"class_path": "X", "init_args": {"p": 1}},
            {"class_path": "Y", "init_args": {"q": 2}},
            {"class_path": "Y", "init_args": {"q": 2}},
        ),
        ({"class_path": "X", "init_args": {"p": 1}}, {"class_path": "Y"}, {"class_path": "Y"}),
        ({"class_path": "X", "init_args": {"p": 1}}, {"class_path": "X"}, {"class_path": "X", "init_args": {"p": 1}}),
        ({"class_path": "X", "init_args": {"p": 1}}, {"init_args": {"q": 2}}, {"class_path": "X", "init_args": {"p": 1, "q": 2}}),
        ("X", {"init_args": {"q": 2}}, {"class_path": "X", "init_args": {"q": 2}}),
        ({"class_path": "X", "init_args": {"p": 1}}, "X", {"class_path": "X", "init_args": {"p": 1}}),
        ({"class_path": "X", "init_args": {"p": 1}}, "Y", "Y"),
    ],
)
def test_merging(earlier: Any, later: Any, merged: Any) -> None:
    before = yaml.safe_dump(earlier)
    assert merge(earlier, later) == merged
    assert yaml.safe_dump(earlier) == before


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``generative train ... --print_config``; returns what it prints, read."""

    def run(*arguments: str) -> Any:
        assert main(["train", *arguments, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


def overlay(folder: Path, text: str, name: str = "overlay.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_later_configurations_win_and_the_command_line_last(printed: Any, tmp_path: Path) -> None:
    first = overlay(tmp_path, "objective: {init_args: {denoiser: {init_args: {depth: 3}}}}\ntrainer: {batch_size: 48}", "a.yaml")
    second = overlay(tmp_path, "trainer: {batch_size: 32, max_grad_norm: 2.0}", "b.yaml")
    base = printed(BASE)
    # Options may stand between configurations, and one may be given as an option.
    result = printed(BASE, "--trainer.max_grad_norm", "3.0", first, "--config", second)
    expected = base | {"trainer": base["trainer"] | {"batch_size": 32, "max_grad_norm": 3.0}}
    expected["objective"]["init_args"]["denoiser"]["init_args"]["depth"] = 3
    assert result == expected


def test_another_class_takes_none_of_the_earlier_arguments(printed: Any, tmp_path: Path) -> None:
    other = overlay(tmp_path, "trainer: {lr_schedule: {class_path: generative.core.schedules.Constant}}")
    schedule = printed(BASE, other)["trainer"]["lr_schedule"]
    assert schedule["class_path"] == "generative.core.schedules.Constant"


def test_a_part_in_a_file_of_its_own_is_merged_too(printed: Any, tmp_path: Path) -> None:
    overlay(tmp_path, "class_path: generative.data.digits.DigitsDataset\ninit_args: {image_size: 16}", "part.yaml")
    first = overlay(tmp_path, "data: part.yaml", "a.yaml")
    second = overlay(tmp_path, "data: {init_args: {split: test}}", "b.yaml")
    data = printed(BASE, first, second)["data"]["init_args"]
    assert data["image_size"] == 16 and data["split"] == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {batch_size: many}", "'{file}': trainer.batch_size must be int, got many"),
        ("trainer: {bach: 3}", "'{file}': trainer.bach is not a known key"),
        ("objective: {init_args: {denoiser: {init_args: {dept: 3}}}}", "'{file}': objective.denoiser.dept is not a known key"),
        ("objectiv: {}", "'{file}': objectiv is not a known key"),
        ("objective: {init_arg: {}}", "'{file}'"),
        ("- 1", "'{file}' must be a mapping"),
        ("trainer: {batch_size: 0}", "batch_size"),
        ("objective: {class_path: os.system}", "'{file}' names 'os.system', which is not of generative"),
        ("data: {class_path: generative.data.digits.DigitDataset}", "'{file}': data: there is no class 'DigitDataset'"),
    ],
)
def test_messages_name_the_file_and_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    file = overlay(tmp_path, text)
    assert main(["train", BASE, file, "--trainer.output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message.replace("{file}", file) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_of_the_command_line_is_said_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = overlay(tmp_path, "trainer: {batch_size: 8}")
    assert main(["train", BASE, file, "--trainer.batch_size", "x"]) == 2
    assert capsys.readouterr().err == "error: command line: trainer.batch_size must be int, got x\n"


def test_an_overlay_alone_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "imagenet/sizes/mar_l_256"]) == 2
    assert "an overlay comes after a whole configuration" in capsys.readouterr().err
    with pytest.raises(UserError, match="is imagenet/sizes/mar_l_256 meant"):
        find_config("imagenet/mar_l_256")


def test_a_run_goes_on_with_several_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = "evaluation: null\ntrainer: {total_images: 64, batch_size: 32, evaluate_interval_steps: null}\n"
    short += "objective: {init_args: {denoiser: {init_args: {depth: 1, hidden_size: 24}}}}"
    command = [BASE, overlay(tmp_path, short), overlay(tmp_path, f"trainer: {{output_dir: {tmp_path / 'run'}}}", "place.yaml")]
    assert main(["train", *command]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["objective"]["init_args"]["denoiser"]["init_args"]["depth"] == 1
    capsys.readouterr()
    assert main(["train", *command, "--resume", "latest", "--trainer.total_images", "96"]) == 0
    assert "changed: trainer.total_images: 64 -> 96" in capsys.readouterr().out
    # A run's folder is one of the configurations; one after it may place the new run elsewhere.
    assert (
        main(["train", str(tmp_path / "run"), overlay(tmp_path, f"trainer: {{output_dir: {tmp_path / 'new'}}}", "new.yaml")]) == 0
    )
    assert (tmp_path / "new" / "pipeline").is_dir()
    (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "moved"), overlay(tmp_path, "seed: 0", "seed.yaml"), "--resume", "latest"]) == 0
    assert str(tmp_path / "moved" / "pipeline") in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_classes_are_found_by_name(printed: Any, tmp_path: Path) -> None:
    today = printed(BASE)
    content = yaml.safe_load(find_config(BASE).read_text())
    text = re.sub(r"generative(\.\w+)+\.(\w+)", r"generative.before.the.move.\2", yaml.safe_dump(content))
    assert printed(overlay(tmp_path, text)) == today
    assert printed(overlay(tmp_path, re.sub(r"generative\.before\.the\.move\.", "", text))) == today
    old = content["data"]["class_path"].rpartition(".")[2]
    assert printed(BASE, "--data", f"generative.old.{old}")["data"]["class_path"] == today["data"]["class_path"]
    assert printed(BASE, "--data.class_path", old)["data"]["class_path"] == today["data"]["class_path"]


@pytest.mark.parametrize("name", ["generative.data.digits.DigitsDatset", "DigitsDatset"])
def test_an_unknown_class_gets_near_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["train", BASE, overlay(tmp_path, f"data: {{class_path: {name}}}"), "--print_config"]) == 2
    error = capsys.readouterr().err
    assert "is DigitsDataset" in error and "meant?" in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "base", "image_size", "parameters", "images", "batch", "parts"), PUBLISHED)
def test_published_sizes(name: str, base: str, image_size: int, parameters: int, images: int, batch: int, parts: int) -> None:
    path = find_config(f"imagenet/{base}")
    files = [path]
    if (size := f"imagenet/sizes/{name}") in list_overlays():
        assert f"#   generative train imagenet/{base} {size}\n" in path.read_text(), "its command is told where it starts"
        assert f"over imagenet/{base}" in find_config(size).read_text().partition("\n")[0]
        files.append(find_config(size))
    _, config = parse_train_config(files)
    trainer = config.trainer
    assert str(trainer.output_dir) == f"runs/imagenet-{name}"
    assert (trainer.total_images, trainer.batch_size, trainer.gradient_accumulation_steps) == (images, batch, parts)
    data = config.data.init_args
    assert (data.images.init_args if "images" in data else data).image_size == image_size
    arguments = config.objective.init_args
    kinds = ("network", "transformer", "generator", "tokenizer", "denoiser", "classifier")
    network = next(arguments[key] for key in kinds if key in arguments)
    options = {key: 1000 if key == "num_classes" else value for key, value in vars(network.init_args).items()}
    module, _, kind = network.class_path.rpartition(".")
    with torch.device("meta"):
        built = getattr(import_module(module), kind)(**options)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert name not in PAPERS or agrees(parameters, PAPERS[name]), "the paper counts otherwise"


def test_every_overlay_is_published() -> None:
    assert {f"imagenet/sizes/{name}" for name, base, *_ in PUBLISHED if name != base} >= set(list_overlays())
    assert not set(list_overlays()) & set(list_configs())


def test_an_overlay_repeats_nothing() -> None:
    for name, base, *_ in PUBLISHED:
        if (path := list_overlays().get(f"imagenet/sizes/{name}")) is not None:
            whole, size = (yaml.safe_load(file.read_text()) for file in (find_config(f"imagenet/{base}"), path))
            assert not [key for key, value in leaves(size).items() if leaves(whole).get(key) == value], name


def leaves(content: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(content, dict):
        return {path: content}
    return {key: value for name, inner in content.items() for key, value in leaves(inner, (*path, name)).items()}


def test_a_wheel_ships_every_configuration() -> None:
    root = Path(__file__).parents[3]
    shipped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    found = {path for patterns in shipped.values() for pattern in patterns for path in root.glob(pattern)}
    assert found >= {path for path in shipped_files().values() if path.is_relative_to(root)}
    for folder, patterns in shipped.items():
        assert all(folder == f"share/triptych/{Path(pattern).parent}" for pattern in patterns)


def test_a_resolved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    text = dump_config(*parse_train_config([find_config("imagenet/mar_256"), find_config("imagenet/sizes/mar_l_512")]))
    assert dump_config(*parse_train_config(Path(overlay(tmp_path, text)))) == text
