"""A saved pipeline loads in a process that has imported nothing of its family, and makes the same image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tiny_pipelines import tiny_gan

SCRIPT = """
import sys, torch
from pipelines import load_pipeline
image = load_pipeline(sys.argv[1])(class_labels=[1], generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(image, sys.argv[2])
"""


def test_load_in_a_fresh_process(tmp_path: Path) -> None:
    pipeline = tiny_gan(num_classes=2)
    expected = pipeline(class_labels=[1], generator=torch.Generator().manual_seed(0), output_type="pt").images
    pipeline.save_pretrained(tmp_path / "run" / "pipeline")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(tmp_path / "image.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "image.pt", weights_only=True), expected)
