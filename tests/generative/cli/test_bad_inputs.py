"""Commands times bad inputs: one sentence and exit code 2 each, in bounded time, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from generative.cli.main import main
from generative.core.logging import read_metrics
from generative.core.safe_yaml import UnsafeYAMLError, load_yaml

EVALUATION = {
    "class_path": "generative.core.evaluation.Evaluator",
    "init_args": {
        "data": {"class_path": "toy.ToyImages", "init_args": {"seed": 9}},
        "extractor": "efficientnet-lite0",
        "input_size": 32,
        "metrics": ["frechet", "precision_recall"],
        "num_samples": 12,
    },
}


@pytest.fixture
def config(toy: Any, tmp_path: Path) -> dict[str, Any]:
    """A configuration of two steps into ``run``, written to ``toy.yaml`` by ``train``."""
    return {
        "objective": {
            "class_path": "toy.ToyDenoiser",
            "init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}},
        },
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {
            "output_dir": "run",
            "total_images": 16,
            "batch_size": 8,
            "log_interval_steps": 1,
            "grid_images_per_class": 2,
            "progress": False,
        },
    }


def train(config: dict[str, Any], *arguments: str) -> int:
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    return main(["train", "toy.yaml", "--trust-code", *arguments])


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


LONG_NAME = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seed", "-1"], "seed must be an integer from 0 to 2^64 - 1, got -1"),
        (["--seed", str(2**64)], "seed must be an integer from 0 to 2^64 - 1"),
        (["--seed", "null"], "seed"),
        (["--trainer.max_grad_norm", "0"], "trainer.max_grad_norm must be above 0, or null for no clipping, got 0"),
        (["--trainer.max_grad_norm", "-1"], "trainer.max_grad_norm must be above 0"),
        (["--trainer.max_grad_norm", ".nan"], "trainer.max_grad_norm must be above 0"),
        (["--trainer.num_workers", "-1"], "trainer.num_workers must not be negative"),
        (["--trainer.grid_images_per_class", "100000000"], "trainer.grid_images_per_class must be at most 1000"),
        (["--objective.init_args.optimizer.init_args.lr", "null"], "lr"),
        (["--trainer.output_dir", LONG_NAME], "File name too long"),
        (["--trainer.output_dir", "/dev/null/run"], "Not a directory"),
        (["--evaluation.init_args.batch_size", "0"], "evaluation batch_size must be at least 1, got 0"),
        (["--evaluation.init_args.batch_size", "-5"], "evaluation batch_size must be at least 1, got -5"),
        (["--evaluation.init_args.seed", "-1"], "evaluation seed must be an integer"),
        (["--evaluation.init_args.num_samples", "3"], "precision_recall needs at least 4 num_samples, got 3"),
        (["--evaluation.init_args.data.init_args.num_images", "3"], "needs at least 4 images of the evaluation data, got 3"),
        (["--data.init_args.num_images", "3"], "needs at least 4 training images, got 3"),
    ],
)
def test_train_refuses(config: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    if any("evaluation" in argument or "data." in argument for argument in arguments):
        config["evaluation"] = EVALUATION
    assert train(config, *arguments) == 2
    assert sentence in failure(capsys)
    assert not Path("run").exists()


def test_a_name_with_a_zero_byte(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["trainer"]["output_dir"] = "a\0b"
    assert train(config) == 2
    assert "zero byte" in failure(capsys)


def nested(levels: int) -> str:
    return "seed: " + "[" * levels + "]" * levels


def bomb(merge: bool) -> str:
    """Nine levels of ten aliases each: a billion values."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [1]"]
    for level in range(1, 10):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"))
    return "\n".join(lines)


DOCUMENTS = {
    "cyclic": ("seed: &a [*a]", "alias of itself"),
    "cyclic mapping": ("&a {seed: *a}", "alias of itself"),
    "deep": (nested(80), "nests more than 64 levels"),
    "very deep": (nested(20_000), "nests more than 64 levels"),
    "bomb": (bomb(False), "unfolds to more than 100,000 values"),
    "merge bomb": (bomb(True), "unfolds to more than 100,000 values"),
    "no date": ("seed: 2024-13-99", "month must be in 1..12"),
    "zero byte": ('seed: "a\0b"', "special characters are not allowed"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("command", ["train", "encode"])
def test_yaml_out_of_bounds(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    text, sentence = DOCUMENTS[name]
    Path("bad.yaml").write_text(text)
    arguments = ["train", "bad.yaml"] if command == "train" else ["encode", "run", "--config", "bad.yaml", "--output", "cache"]
    assert main(arguments) == 2
    assert sentence in failure(capsys)


@pytest.mark.parametrize("text", ["&a [*a]", nested(20_000), "[" * 20_000 + "]" * 20_000])
def test_an_override_out_of_bounds(config: dict[str, Any], capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert train(config, "--data.init_args.num_images", text) == 2
    failure(capsys)


def test_plain_yaml_is_read_as_ever() -> None:
    text = "a: &a {x: 1, y: [1, 2.5, null, yes]}\nb: {<<: *a, x: 2}\nc: *a"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("") is None
    with pytest.raises(UnsafeYAMLError):
        load_yaml(bomb(True))


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "sample": lambda output: ["sample", "run", "--output", output],
    "npz": lambda output: ["sample", "run", "--output", f"{output}.npz"],
}


@pytest.fixture
def trained(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert train(config) == 0
    capsys.readouterr()
    return config


def test_sample_refuses(trained: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.load_pipeline", lambda folder: pytest.fail("a mistake in the arguments costs no loading"))
    for arguments, sentence in (
        (["--seed", "-1"], "--seed must be an integer from 0 to 2^64 - 1, got -1"),
        (["--seed", str(2**64)], "--seed must be an integer"),
        (["--device", "meta"], "--device 'meta' computes nothing"),
        (["--device", "meta:0"], "--device 'meta:0' computes nothing"),
        (["--num-images-per-class", str(10**12)], "--num-images-per-class must be at most 10,000,000"),
        (["--interpolate", "latent", "--frames", str(10**9)], "--frames must be at most 10,000"),
        (["--batch-size", str(10**12)], "--batch-size must be at most"),
    ):
        assert main(["sample", "run", *arguments]) == 2
        assert sentence in failure(capsys), arguments


@pytest.mark.parametrize(
    "command", ["edit", "reconstruct", "encode", "truncation-curve", "quickstart"], ids=lambda command: str(command)
)
def test_every_command_refuses_seeds_and_devices(toy: Any, capsys: pytest.CaptureFixture[str], command: str) -> None:
    needed = {
        "edit": ["run", "--image", "x.png", "--box", "0,0,2,2"],
        "reconstruct": ["run", "--output", "out"],
        "encode": ["run", "--output", "cache"],
        "truncation-curve": ["run", "--reference", "x", "--output", "out"],
        "quickstart": [],
    }[command]
    flags = [] if command == "quickstart" else [["--device", "meta"]]
    flags += [] if command in ("encode", "reconstruct") else [["--seed", "-1"], ["--seed", str(2**64)]]
    for flag in flags:
        assert main([command, *needed, *flag]) == 2
        assert flag[0] in failure(capsys)


def test_a_network_for_other_channels_than_images_have(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    override = ["--objective.init_args.denoiser.init_args.in_channels", "4", "--trainer.output_dir", path]
    assert main(["train", "digits/dit", *override]) == 2
    assert "makes latents of 4 channels (in_channels; images have 3) and the pipeline has no autoencoder" in failure(capsys)


def test_foreign_lines_of_the_log_are_left_out(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    log = Path("run/metrics.jsonl")
    good = log.read_text().splitlines()
    bad = ['{"step": 1', "[1, 2]", '"text"', "{}", '{"step": "one", "images_seen": 8}', '{"step": null}', "[" * 20_000, "\ufffd"]
    log.write_bytes("\n".join([*bad, *good]).encode() + b"\n\xff\xfe\n")
    assert train(trained, "--resume", "latest", "--trainer.total_images", "24") == 0
    assert [entry["step"] for entry in read_metrics(Path("run"))] == [1, 2, 3]


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "networks/net/config.json"])
def test_deeply_nested_json_in_a_checkpoint(trained: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = Path("run/checkpoint-00000002") / name
    text = "[" * 100_000
    path.write_text(text)
    manifest = Path("run/checkpoint-00000002/manifest.json")
    if name != "manifest.json":
        content = json.loads(manifest.read_text())
        content["files"][name] = len(text)
        manifest.write_text(json.dumps(content))
    assert train(trained, "--resume", "latest") == 2
    failure(capsys)


def test_a_header_of_deeply_nested_json(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(Path("run/pipeline").rglob("*.safetensors"))
    header = b'{"x":' + b"[" * 100_000
    shutil.copy(weights, "copy")
    weights.unlink()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    assert main(["sample", "run", "--output", "samples"]) == 2
    failure(capsys)


@pytest.mark.parametrize("output", ["/dev/null/x", LONG_NAME])
@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_that_cannot_be(trained: dict[str, Any], capsys: pytest.CaptureFixture[str], command: str, output: str) -> None:
    assert main(COMMANDS[command](output)) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
