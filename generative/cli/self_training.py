"""A copy of a diffusion, trained on the samples of its original, and the pipeline that it guides."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from generative.cli.config import parse_train_config
from generative.cli.config_files import find_config
from generative.cli.run_config import CONFIG_FILE
from generative.cli.self_plan import BASE, SAMPLES, TRAINING, Plan
from generative.cli.train import train
from generative.core.errors import UserError

RECORD_FILE = "selfimprove.json"
DATASET = "generative.data.generated.GeneratedDataset"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Step 2, as ``generative train`` is asked for it.

    Attributes:
        configs: What is laid over one another.
        overrides: Of the command line.
        steps: Its length.
        batch_size: Samples a step.
    """

    configs: tuple[Path, ...]
    overrides: tuple[str, ...]
    steps: int
    batch_size: int

    @classmethod
    def make(cls, plan: Plan) -> TrainingPlan:
        """Read the configuration, before anything is sampled.

        Raises:
            UserError: If there is none, it is wrong, or the budget is less than a step or than a checkpoint that was passed.
        """
        from generative.core.checkpoint import checkpoint_path, list_checkpoints, step_of

        configs = tuple(find_config(name) for name in plan.configs) or (run_config(plan.run),)
        common = (*overlay(plan), *plan.overrides)
        _, config = parse_train_config(configs, common, plan.trust_code)
        batch_size = config.trainer.batch_size
        if plan.num_images < batch_size:
            raise UserError(f"--images {plan.num_images} is less than one step of trainer.batch_size {batch_size}; give more")
        steps = math.ceil(plan.num_images / batch_size)
        interval = math.ceil(steps / plan.num_checkpoints)
        own = ("--trainer.total_images", str(plan.num_images), "--trainer.checkpoint_interval_steps", str(interval))
        folder = plan.output / TRAINING
        there = [step_of(path) for path in list_checkpoints(folder)]
        if there and max(there) > steps and not checkpoint_path(folder, steps).is_dir():
            known = ", ".join(str(step * batch_size) for step in there)
            raise UserError(f"'{folder}' has gone on beyond --images {plan.num_images}; it kept checkpoints at {known}")
        return cls(configs=configs, overrides=(*common, *own), steps=steps, batch_size=batch_size)

    def checkpoint(self, plan: Plan) -> Path:
        """The checkpoint at its end."""
        from generative.core.checkpoint import checkpoint_path

        return checkpoint_path(plan.output / TRAINING, self.steps)

    def fit(self, plan: Plan) -> int:
        """Train, or go on; returns the exit code."""
        if self.checkpoint(plan).is_dir():
            return 0
        return train(
            self.configs,
            list(self.overrides),
            resume="auto",
            trust_code=plan.trust_code,
            go_on="the same command",
            init_from=plan.output / BASE,
        )


def run_config(run: Path) -> Path:
    """The configuration of a run, for a checkpoint the run's.

    Raises:
        UserError: If there is none.
    """
    for folder in (run, run.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise UserError(f"'{run}' holds no {CONFIG_FILE}, so how to train its copy is unknown; give --config CONFIG")


def overlay(plan: Plan) -> list[str]:
    """What self-improvement changes in a configuration: the data, and what belongs to a training from nothing."""
    data = {"class_path": DATASET, "init_args": {"folder": str(plan.output / SAMPLES)}}
    changes = {
        "data": json.dumps(data),
        "evaluation": "null",  # the copy is to be worse
        "trainer.output_dir": str(plan.output / TRAINING),
        "trainer.lr_schedule": "null",
        "trainer.horizontal_flip": "false",  # mirrored samples are the base's own already
        "trainer.evaluate_interval_steps": "null",
        "trainer.keep_best": "null",
        "trainer.keep_last_checkpoints": "null",
    }
    if plan.learning_rate is not None:
        changes["objective.init_args.optimizer.init_args.lr"] = str(plan.learning_rate)
        changes |= {"trainer.scale_lr": "none", "trainer.base_batch_size": "null"}  # it is the rate itself
    return [part for name, value in changes.items() for part in (f"--{name}", value)]


def write_guided(plan: Plan, trained: TrainingPlan) -> None:
    """Step 3: the pipeline, and what made it.

    Raises:
        UserError: If the copy cannot be loaded.
    """
    from generative.core.checkpoint import write_folder
    from generative.core.links import link_duplicates
    from generative.core.logging import write_json
    from generative.core.weights import load_network
    from pipelines.diffusion import DiffusionImagePipeline

    checkpoint = trained.checkpoint(plan)
    guide, fingerprint = load_network(checkpoint, "denoiser")
    base = DiffusionImagePipeline.from_pretrained(plan.output / BASE)
    defaults = base.sampling_defaults | {"guide_scale": 1 + plan.scale}
    guided = DiffusionImagePipeline(
        base.denoiser, base.scheduler, base.autoencoder, defaults, formulation=base.formulation, guide=guide
    )
    guided.class_names = base.class_names

    def fill(folder: Path) -> None:
        guided.save_pretrained(folder)
        link_duplicates(folder.rglob("*.safetensors"), (plan.output / BASE).rglob("*.safetensors"))

    write_folder(plan.output / "pipeline", fill)
    seen = trained.steps * trained.batch_size
    record = {
        "run": str(plan.run),
        "average": plan.average,
        "num_samples": plan.num_samples,
        "seed": plan.seed,
        "options": dict(plan.options),
        "num_images": seen,
        "checkpoint": str(checkpoint),
        "guide": fingerprint,
        "scale": plan.scale,
    }
    write_json(plan.output / RECORD_FILE, record)
    visits = seen / plan.num_samples
    print(
        f"done: '{plan.output / 'pipeline'}' is guided away from a copy that saw each of {plan.num_samples} samples {visits:.3g} "
        f"times, w {plan.scale:g} (guide_scale {1 + plan.scale:g}), sample with `generative sample {plan.output} --output DIR`"
    )
