"""The README's commands for one's own images, run as they stand there, on small images and for a few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from generative.cli.main import main as generative
from metrics.cli import main as fid_score

README = Path(__file__).parents[1] / "README.md"
# Added to a command so that it is done in seconds, by its first words; the last of equal flags holds.
SHORT = {
    "generative train folder/dit": "--trainer.total_images 32 --trainer.batch_size 16 --trainer.progress false "
    "--objective.init_args.sampling.num_inference_steps 2 --evaluation.init_args.num_samples 8 "
    "--evaluation.init_args.input_size 64 "
    "--objective.init_args.denoiser.init_args.depth 1 --trainer.grid_images_per_class 2",
    "generative train runs/pets": "--trainer.total_images 48",
    "generative sample": "--num-images-per-class 2",
    "fid-score": "--num-samples 8 --input-size 64 --quiet",
}


def commands() -> list[str]:
    """Lines of the code block of the section."""
    section = README.read_text(encoding="utf-8").split("## Your own images", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


def run(command: str) -> int:
    """Run a line of the README in this process."""
    program, *arguments = shlex.split(command)
    extra = next((text for start, text in SHORT.items() if command.startswith(start)), "")
    return {"generative": generative, "fid-score": fid_score}[program]([*arguments, *shlex.split(extra)])


def test_a_folder_of_class_folders_is_trained_sampled_scored_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, target) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        if target < 2:
            folder = tmp_path / "pets" / ("train" if index < 200 else "test") / ("cat", "dog")[target]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert len(lines) == 5
    assert [run(line) for line in lines] == [0] * 5
    printed = capsys.readouterr().out
    assert "images of 2 classes (cat, dog)" in printed and "changed: trainer.total_images: 32 -> 48" in printed
    assert "frechet_distance" in printed and Path("report.html").is_file()
    assert len(list(Path("samples/pets").glob("*.png"))) == 4
