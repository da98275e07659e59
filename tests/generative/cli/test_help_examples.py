"""Examples in help texts and comments of configurations name what the shipped configurations make."""

from __future__ import annotations

import math
import re
from pathlib import Path

import yaml

from generative.cli import posthoc_ema, sample
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.samplers.names import named_sampler

CONFIGS = Path(__file__).parents[3] / "configs"
MADE_BY_FLAGS = {"runs/pets"}  # configs/folder/dit.yaml


def trainers() -> dict[str, dict]:
    """The trainer sections of the shipped configurations by their folders, whole ones only."""
    sections = [yaml.safe_load(path.read_text()).get("trainer", {}) for path in CONFIGS.rglob("*.yaml")]
    return {section["output_dir"]: section for section in sections if "output_dir" in section}


def test_examples_name_runs_that_configurations_write() -> None:
    known = set(trainers()) | MADE_BY_FLAGS
    for text in (sample.EPILOG, posthoc_ema.EPILOG):
        named = set(re.findall(r"runs/[\w-]+(?=[\s/]|$)", text))
        assert named and named <= known, named - known


def test_examples_are_within_the_runs() -> None:
    trainer = trainers()["runs/cifar10-edm2"]
    for images in map(int, re.findall(r"--images (\d+)", posthoc_ema.EPILOG)):
        assert images <= trainer["total_images"] and images % trainer["ema_snapshot_interval_images"] == 0
    trainer = trainers()["runs/cifar10-dit"]
    steps = trainer["total_images"] // trainer["batch_size"]
    interval = trainer["checkpoint_interval_steps"]
    for step in map(int, re.findall(r"--guide-step (\d+)", sample.EPILOG)):
        assert step % interval == 0 and steps - step < interval  # two checkpoints are kept, the last and the one before
    for line in sample.EPILOG.split("\n"):
        assert not (line.startswith("  ") and "(" in line), f"a shell does not read parentheses: {line}"


def test_configured_churn_is_not_cut_at_every_step() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        arguments = yaml.safe_load(path.read_text()).get("objective", {}).get("init_args", {})
        sampler = arguments.get("sampler") or {}
        if isinstance(sampler, dict) and sampler.get("class_path", "").endswith("HeunSampler"):
            churn = sampler.get("init_args", {}).get("churn", 0.0)
            assert churn / arguments["sampling"]["num_inference_steps"] < math.sqrt(2) - 1, path


def test_samplers_in_comments_can_be_made() -> None:
    text = (CONFIGS / "imagenet/edm_64.yaml").read_text()
    (named,) = re.findall(r"--sampler (\S+)", text)
    config = named_sampler(named, EDM()).config
    assert (config.churn, config.churn_min, config.churn_max, config.noise_scale) == (40.0, 0.05, 50.0, 1.003)
