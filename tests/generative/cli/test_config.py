"""Configurations: every mistake is one sentence with the value's path, before anything is built."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from generative.cli.config import build_config, dump_config, foreign_code, parse_train_config
from generative.cli.config_files import find_config, list_configs
from generative.cli.main import main
from generative.core.errors import UserError

BASE: dict[str, Any] = {
    "seed": 3,
    "objective": {
        "class_path": "toy.ToyDenoiser",
        "init_args": {
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            "ema": {"class_path": "generative.core.ema.ConstantEMA", "init_args": {"rate": 0.9}},
        },
    },
    "data": {"class_path": "toy.ToyImages"},
    "trainer": {"output_dir": "runs/x", "total_images": 48, "batch_size": 8},
}


def write(folder: Path, edit: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    content = copy.deepcopy(BASE)
    edit(content)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 2) -> str:
    """Run the command; it must fail with one line on standard error and nothing else."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def arguments_of(content: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path:
        content = content.setdefault(name, {})
    return content


MISTAKES: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    ((), {"objetive": 1}, "objetive is not a known key"),
    ((), {"objetive": {"class_path": "toy.ToyGAN"}}, "objetive is not a known key"),
    ((), {"objetive": {}}, "objetive is not a known key"),
    (("objective",), {"init_arg": {"width": 4}}, "objective.init_arg is not a known key; a class has class_path and init_args"),
    (("objective", "init_args", "ema"), {"init_arg": {}}, "objective.ema.init_arg is not a known key"),
    (("trainer",), {"bacth_size": 4}, "trainer.bacth_size is not a known key"),
    (("objective", "init_args"), {"widht": 4}, "objective.widht is not a known key"),
    (("objective", "init_args", "optimizer", "init_args"), {"rate": 4}, "objective.optimizer.rate is not a known key"),
    (("objective", "init_args", "ema", "init_args"), {"rat": 4}, "objective.ema.rat is not a known key"),
    (("data", "init_args"), {"imgsize": 4}, "data.imgsize is not a known key"),
    ((), {"seed": "x"}, "seed must be int, got x"),
    (("trainer",), {"batch_size": 1.5}, "trainer.batch_size must be int, got 1.5"),
    (("trainer",), {"mixed_precision": "int8"}, "trainer.mixed_precision must be one of no, bf16, fp16, got int8"),
    (("trainer",), {"shard_group_size": "two"}, "trainer.shard_group_size must be int or null, got two"),
    (("trainer",), {"max_grad_norm": "big"}, "trainer.max_grad_norm must be float or null, got big"),
    (("objective", "init_args"), {"width": "big"}, "objective.width must be int, got big"),
    (("objective", "init_args"), {"ema": 3}, "objective.ema: Not a valid subclass of EMAProfile"),
    (("objective", "init_args", "optimizer", "init_args"), {"lr": "fast"}, "objective.optimizer.lr must be float, got fast"),
    (("objective", "init_args", "ema"), {"class_path": "generative.core.ema.NoEMA"}, "objective.ema: there is no class 'NoEMA'"),
    (("objective", "init_args", "ema"), {"class_path": "torch.nn.Linear"}, "objective.ema: Import path torch.nn.Linear does not"),
    (("objective",), {"class_path": "torch.nn.Linear"}, "objective: Import path torch.nn.Linear does not"),
    (
        (),
        {
            "evaluation": {
                "class_path": "generative.core.evaluation.Evaluator",
                "init_args": {"data": {"class_path": "toy.ToyImages", "init_args": {"num_imags": 1}}},
            }
        },
        "evaluation.data.num_imags is not a known key",
    ),
]


@pytest.mark.parametrize(("path", "values", "message"), MISTAKES, ids=[message[:40] for _, _, message in MISTAKES])
def test_mistakes_are_named_with_their_path(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[str, ...], values: Any, message: str
) -> None:
    config = write(tmp_path, lambda content: arguments_of(content, *path).update(values))
    assert message in one_sentence(capsys, ["train", str(config), "--trust-code"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["trainer"].pop("output_dir"), "required: trainer.output_dir"),
        (lambda c: c.pop("data"), "required: data"),
        (lambda c: c["objective"]["init_args"].pop("optimizer"), "objective: the following arguments are required: optimizer"),
    ],
)
def test_what_is_missing(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Any, message: str) -> None:
    assert message in one_sentence(capsys, ["train", str(write(tmp_path, edit)), "--trust-code"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--trainer.bach", "3"], "unrecognized arguments: --trainer.bach 3"),
        (["--trainer.batch_size", "x"], "trainer.batch_size must be int, got x"),
        (["--objective.init_args.ema.init_args.rate=x"], "objective.ema.rate must be float, got x"),
        (["--objective.init_args.widht", "3"], "widht"),
        (["stray"], "unrecognized arguments: stray"),
        (["--resume"], "--resume"),
        (["--resume", "latest", "--overwrite"], "choose one of them"),
    ],
)
def test_wrong_overrides(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert message in one_sentence(capsys, ["train", str(write(tmp_path)), "--trust-code", *overrides])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1,\n b: }", "cannot be read: while parsing"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "must be a mapping of objective, data and trainer"),
        (b"- 1\n- 2", "must be a mapping"),
        (b"a: !!python/object/apply:os.system [echo]", "cannot be read"),
    ],
)
def test_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    assert message in one_sentence(capsys, ["train", str(tmp_path / "x.yaml")])


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "configuration 'digits/nothing' does not exist; is digits/" in one_sentence(capsys, ["train", "digits/nothing"])


def test_names_of_shipped_configurations() -> None:
    known = list_configs()
    assert known, "the checkout ships configurations"
    for name, path in known.items():
        assert find_config(name) == find_config(f"configs/{name}.yaml") == path or find_config(f"configs/{name}.yaml").is_file()
    with pytest.raises(UserError, match="does not exist"):
        find_config("digits")


def test_print_config_can_be_trained_again(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--trainer.max_grad_norm", "0.5", "--objective.init_args.width=16", "--seed", "7"]
    assert main(["train", str(write(tmp_path)), "--trust-code", "--print_config", *overrides]) == 0
    printed = capsys.readouterr().out
    resolved = yaml.safe_load(printed)
    assert resolved["seed"] == 7 and resolved["trainer"]["max_grad_norm"] == 0.5
    assert resolved["objective"]["init_args"]["width"] == 16
    assert resolved["objective"]["init_args"]["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    assert resolved["trainer"]["keep_last_checkpoints"] == 2 and resolved["trainer"]["lr_schedule"] is None
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "again.yaml"), "--trust-code", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == resolved
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that leaves a trace when it is imported."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "imported"


@pytest.mark.parametrize(
    "value",
    [
        {"class_path": "evil_module.Evil"},
        {"class_path": "evil_module.Evil", "init_args": {"x": 1}},
        "evil_module.Evil",
        "sub.yaml",
        {"class_path": "not_installed.Evil"},
        {"class_path": "toy.ToyDenoiser"},
        "os.system",
    ],
)
@pytest.mark.parametrize("place", [("objective",), ("objective", "init_args", "ema"), ("data",), ("evaluation",)])
def test_foreign_code_is_refused_and_not_imported(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], evil: Path, place: tuple[str, ...], value: Any
) -> None:
    (tmp_path / "sub.yaml").write_text("class_path: evil_module.Evil\n")

    def edit(content: dict[str, Any]) -> None:
        content["objective"]["class_path"] = "generative.gan.objective.GANObjective"
        content["data"]["class_path"] = "generative.data.digits.DigitsDataset"
        arguments_of(content, *place[:-1])[place[-1]] = value

    message = one_sentence(capsys, ["train", str(write(tmp_path, edit))])
    assert "which is not of generative, metrics, pipelines, torch, torchvision, diffusers; pass --trust-code" in message
    assert not evil.exists()


@pytest.mark.parametrize(
    "override",
    [
        ["--data", "evil_module.Evil"],
        ["--data=evil_module.Evil"],
        ["--data.class_path", "evil_module.Evil"],
        ["--data", json.dumps({"class_path": "evil_module.Evil"})],
        ["--config", "{folder}/sub.yaml"],
    ],
)
def test_foreign_code_in_overrides_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], evil: Path, override: list[str]
) -> None:
    (tmp_path / "sub.yaml").write_text("data:\n  class_path: evil_module.Evil\n")

    def edit(content: dict[str, Any]) -> None:
        content["objective"]["class_path"] = "generative.gan.objective.GANObjective"
        content["data"]["class_path"] = "generative.data.digits.DigitsDataset"

    arguments = [part.replace("{folder}", str(tmp_path)) for part in override]
    assert "names 'evil_module.Evil'" in one_sentence(capsys, ["train", str(write(tmp_path, edit)), *arguments])
    assert not evil.exists()


def test_paths_and_versions_are_not_taken_for_code(tmp_path: Path) -> None:
    harmless = [
        "runs/x.y",
        "cifar10.parquet",
        "1.5",
        "v1.2",
        "../shared/data",
        "a sentence. Another",
        "x" * 5000,
        "a\0b",
        "DigitsDataset",
    ]
    content = {"trainer": {"output_dir": harmless}, "class_path": "torch.optim.Adam"}
    assert list(foreign_code(content, (tmp_path,))) == []


@pytest.mark.parametrize("name", sorted(list_configs()))
def test_every_shipped_configuration_parses(name: str, tmp_path: Path) -> None:
    _, config = parse_train_config(find_config(name))
    assert config.trainer.total_images >= config.trainer.batch_size


def write_folders(root: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (8, 8), (40 * number, 100 * image, 0)).save(root / name / f"{image}.png")


@pytest.mark.parametrize("name", ["digits/dit", "digits/am_gan", "digits/transformer", "digits/vq"])
def test_the_number_of_classes_follows_the_data(name: str, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", ("ant", "bee", "cat"))
    data = ["--data", "generative.data.image_folder.ImageFolderDataset", "--data.root", str(tmp_path / "data")]
    parser, config = parse_train_config(find_config(name), [*data, "--data.image_size", "8", "--evaluation", "null"])
    built = build_config(parser, config)
    assert built.data.num_classes == built.objective.num_classes == 3
    resolved = yaml.safe_load(dump_config(parser, config))
    assert ": data" not in yaml.safe_dump(resolved["objective"])
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    assert build_config(*parse_train_config(tmp_path / "again.yaml")).objective.num_classes == 3


def test_a_number_of_classes_that_is_given_stays(tmp_path: Path) -> None:
    key = "--objective.init_args.denoiser.init_args.num_classes"
    for value, number in (("7", 7), ("data", 10)):
        built = build_config(*parse_train_config(find_config("digits/dit"), [key, value]))
        assert built.objective.num_classes == number
    with pytest.raises(UserError, match="num_classes must be int, got many"):
        parse_train_config(find_config("digits/dit"), [key, "many"])


@pytest.mark.parametrize(("key", "place"), [("guidance_scale", "objective.sampling"), ("scheduler", "objective.formulation")])
def test_a_key_that_has_moved_is_told_where_it_is_now(key: str, place: str) -> None:
    with pytest.raises(UserError, match=f"objective.{key} is not a known key: it is in {place} .*now; .* --init-from RUN"):
        parse_train_config(find_config("digits/dit"), [f"--objective.init_args.{key}", "2"])
