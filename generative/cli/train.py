"""``generative train``: parse a configuration, build what it names, and fit."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from generative.cli.config import dump_config, find_config, parse_train_config
from generative.core.errors import UserError

EPILOG = """Any value of the configuration can be overridden by its path:
  generative train digits/dit --trainer.total_images 64000 --objective.init_args.guidance_scale 1.5
  generative train configs/cifar10/dit_s.yaml --data.init_args.root data/cifar10 --trainer.output_dir runs/cifar

Two processes (a machine without CUDA needs --multi_gpu all the same):
  accelerate launch --multi_gpu --num_processes 2 -m generative.cli.main train digits/dit

SIGTERM and Ctrl-C save a checkpoint and stop; `--resume latest` goes on, bit-equal to a run never stopped."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="generative train",
        description="Train a generator from a configuration.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped configuration such as digits/dit")
    parser.add_argument("--resume", metavar="latest|auto|FOLDER", help="go on from the newest checkpoint (auto: if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that already holds a run, deleting it")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--trust-code", action="store_true", help="allow the configuration to name classes of any module")
    known, overrides = parser.parse_known_args(arguments)
    return train(find_config(known.config), overrides, known.resume, known.overwrite, known.print_config, known.trust_code)


def train(
    config_path: Path,
    overrides: list[str],
    resume: str | None = None,
    overwrite: bool = False,
    print_config: bool = False,
    trust_code: bool = False,
) -> int:
    """Train a configuration.

    Returns:
        Exit code: 0 at the end, 128 + n if signal n stopped the run.
    """
    parser, config = parse_train_config(config_path, overrides, trust_code)
    resolved = dump_config(parser, config)
    if print_config:
        print(resolved, end="")
        return 0

    import torch

    from generative.core.checkpoint import resolve_checkpoint
    from generative.core.runtime import build_accelerator
    from generative.core.trainer import Trainer

    output_dir = Path(config.trainer.output_dir)
    checkpoint = resolve_checkpoint(output_dir, resume) if resume else None
    accelerator = build_accelerator(config.trainer.mixed_precision, logging_dir=output_dir)
    if accelerator.is_main_process and checkpoint is None:
        check_output_dir(output_dir, overwrite)
    torch.manual_seed(config.seed)
    built = parser.instantiate_classes(config)
    trainer = Trainer(built.objective, built.data, built.trainer, accelerator, built.seed, built.evaluation)
    if accelerator.is_main_process:
        # Only now, with everything built, is an old run deleted: a mistake in the configuration costs nothing.
        if overwrite and checkpoint is None:
            shutil.rmtree(output_dir, ignore_errors=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.yaml").write_text(resolved)
    accelerator.init_trackers(
        "tensorboard", init_kwargs={"tensorboard": {"purge_step": checkpoint and int(checkpoint.name.split("-")[-1])}}
    )
    trainer.fit(checkpoint)
    accelerator.end_training()
    if trainer.stopped_by and trainer.step < trainer.total_steps:
        if accelerator.is_main_process:
            print(f"stopped at step {trainer.step} of {trainer.total_steps}; a checkpoint was saved, go on with --resume latest")
        return 128 + trainer.stopped_by
    if accelerator.is_main_process:
        print(
            f"done: '{output_dir / 'pipeline'}' holds the pipeline, sample with `generative sample {output_dir} --class-labels 0`"
        )
    return 0


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        UserError: If the folder is a file, or already holds a run that is neither resumed nor to be overwritten.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output folder '{output_dir}' is a file; choose another trainer.output_dir")
    if not (output_dir / "config.yaml").exists():
        return
    if not overwrite:
        raise UserError(
            f"'{output_dir}' already holds a run; go on with --resume latest, start anew with --overwrite, "
            "or choose another --trainer.output_dir"
        )
    if Path.cwd().is_relative_to(output_dir.resolve()):
        raise UserError("--overwrite would delete the current folder; choose another trainer.output_dir")
