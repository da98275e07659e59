"""``generative dpt``: few labels, all stages, gone on with after a stop; a sentence a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from generative.cli import dpt_stages
from generative.cli.dpt_probe import LinearProbe, choose_labelled
from generative.cli.main import main
from generative.core.errors import UserError
from generative.data import generated
from generative.data.digits import DigitsDataset
from generative.data.pseudo_labels import PseudoLabelDataset
from generative.report.dpt import accuracies

PREFIX = "--objective.init_args.denoiser.init_args."
TINY = [f"{PREFIX}hidden_size", "8", f"{PREFIX}depth", "1", f"{PREFIX}num_heads", "2"]
QUIET = ["--trainer.progress", "false", "--trainer.sample_interval_steps", "null", "--trainer.evaluate_interval_steps", "null"]
SHORT = ["--trainer.total_images", "16", "--trainer.batch_size", "8", "--objective.init_args.sampling.num_inference_steps", "2"]
SCORES = ["--evaluation.init_args.num_samples", "20", "--evaluation.init_args.metrics", "[fid]"]


def dpt(output: Path, *arguments: str) -> int:
    return main(
        ["dpt", "digits/dit", "--output", str(output), "--pseudo-images", "2", *TINY, *QUIET, *SHORT, *SCORES, *arguments]
    )


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pixels for features, and the numbers of images that were looked at."""
    seen: list[int] = []

    def extract(images: DigitsDataset, extraction: object) -> torch.Tensor:
        seen.append(len(images))
        return images.images(torch.arange(len(images))).flatten(1).float()

    monkeypatch.setattr(dpt_stages, "extract_features", extract)
    monkeypatch.setattr(dpt_stages.DualPseudoTraining, "extraction", None)
    monkeypatch.setattr(generated, "SHARD_SAMPLES", 8)
    return seen


def test_every_stage_is_done_once_and_written_down(tmp_path: Path, pixels: list[int]) -> None:
    folder = tmp_path / "few"
    assert dpt(folder) == 0
    stages = json.loads((folder / "dpt.json").read_text())["stages"]
    assert stages["probe"]["labelled_images"] == 20 and stages["probe_with_pseudo_images"]["pseudo_images"] == 20
    assert 0.3 < stages["probe"]["accuracy"] < 0.9 and stages["probe"]["pseudo_label_accuracy"] > 0.3
    assert pixels == [1297, 500, 20]
    assert [round(value, 3) for _, value in accuracies(folder / "training")][0] == round(stages["probe"]["accuracy"], 3)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    (folder / "samples" / "shard-00001.safetensors").unlink()
    assert dpt(folder) == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert [path.name for path in after if after[path] != before[path]] == ["shard-00001.safetensors"]
    assert dpt(folder, "--labels-per-class", "3") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels-per-class", "0"], "--labels-per-class must be at least 1, or `all`, got 0: every class needs a label"),
        (["--labels-per-class", "2000"], "class 0 has 128 images, fewer than --labels-per-class 2000"),
        (["--pseudo-images", "0"], "--pseudo-images must be at least 1, got 0"),
        (["--evaluation", "null"], "has no `evaluation`, whose held-out images the classifiers are tested on"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [] if "--evaluation" not in arguments else arguments
    base = ["dpt", "digits/dit", "--output", str(tmp_path / "run")]
    assert main([*base, *(extra or arguments)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_labels_are_chosen_by_class() -> None:
    labels = torch.arange(30) % 3
    chosen = choose_labelled(labels, 3, 2, seed=0)
    assert labels[chosen].bincount().tolist() == [2, 2, 2] and torch.equal(chosen, choose_labelled(labels, 3, 2, seed=0))
    assert not torch.equal(chosen, choose_labelled(labels, 3, 2, seed=1)) and len(choose_labelled(labels, 3, None, 0)) == 30


def test_the_probe_finds_what_is_linear() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    labels = features[:, :3].argmax(1)
    assert LinearProbe(features, labels, 3).accuracy(features, labels) > 0.95


def test_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"labels": torch.zeros(3, dtype=torch.int64)}, tmp_path / "labels.safetensors")
    with pytest.raises(UserError, match="holds no label for each of the 500 images"):
        PseudoLabelDataset(DigitsDataset(split="test"), tmp_path / "labels.safetensors")
