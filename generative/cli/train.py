"""``generative train``: parse a configuration, build what it names, and fit."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from generative.cli.arguments import CommandParser
from generative.cli.config import build_config, dump_config, parse_train_config
from generative.cli.config_files import find_config, read_config
from generative.cli.layers import SECTIONS, quoted
from generative.cli.overrides import split_overrides
from generative.cli.run_config import (
    CONFIG_FILE,
    HISTORY_FILE,
    RunConfig,
    append_history,
    continue_config,
    describe_changes,
    flatten,
)
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.core.trainer import Trainer

# What a run writes into its folder, beside checkpoint-STEP folders; --overwrite deletes these only.
RUN_FILES = (
    CONFIG_FILE,
    HISTORY_FILE,
    "data.json",
    "metrics.jsonl",
    "evaluation.json",
    "pipeline",
    "samples",
    "tensorboard",
    "ema-snapshots",
    "evaluation-features",
    "trackers.json",
    "wandb",
)

EPILOG = """Any value of the configuration can be overridden by its path:
  generative train digits/dit --trainer.total_images 64000 --objective.init_args.sampling.guidance_scale 1.5
  generative train configs/cifar10/dit_s.yaml --data.init_args.root data/cifar10 --trainer.output_dir runs/cifar

Several CONFIGs are laid over one another and later ones win, so that a published size is a file of what it changes: mappings are
merged by key, lists and plain values replaced, and another class_path drops the arguments of the one before:
  generative train imagenet/mar_256 imagenet/sizes/mar_l_256 --print_config

What it would take, on which machines, before anything is there (--device-name here measures this one):
  generative train imagenet/dit_256 --dry-run --device-name h100 --num-processes 8

Two processes (a machine without CUDA needs --multi_gpu all the same):
  accelerate launch --multi_gpu --num_processes 2 -m generative.cli.main train digits/dit

SIGTERM and Ctrl-C save a checkpoint and stop; `--resume latest` goes on, bit-equal to a run never stopped:
  generative train digits/dit --resume latest              (or the run's folder: generative train runs/digits-dit --resume latest)
  generative train runs/digits-dit --resume latest --trainer.total_images 400000
Any checkpoint can be sampled and scored like the run; the best one by a score outlives newer ones as RUN/checkpoint-best:
  generative train digits/dit --trainer.keep_best frechet_distance

Another run's weights to start from (a discriminator of its own, where a pipeline has none; other classes are told):
  generative train my.yaml --init-from runs/cifar10-biggan
A run goes on with its own configuration (config.yaml in its folder), whatever CONFIG says now. What this command line overrides
is listed as `changed: key: old -> new` and kept in history.jsonl:
  may change      length (total_images), learning rates and their schedule, optimizer settings, gradient clipping, weights of
                  losses and penalties, decay of averages, flips, density of timesteps, workers, intervals, checkpoints kept,
                  sampling, grids, evaluation, places of files (their content is compared)
  is refused      data, seed, batch size, micro-batches times processes, precision, networks, kinds of optimizers, kind of
                  objective, noising process and prediction type, frozen parts (tokenizer, autoencoder, perceptual network)"""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative train", "Train a generator from a configuration.", EPILOG)
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG",
        help="a YAML file, the name of a shipped configuration such as digits/dit, or a run's folder; several: later ones win",
    )
    parser.add_argument("--config", dest="further", action="append", default=[], metavar="CONFIG", help="one more CONFIG")
    parser.add_argument("--resume", metavar="latest|auto|FOLDER", help="go on from the newest checkpoint (auto: if there is one)")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN_OR_PIPELINE",
        help="start from the weights and averages of another run, checkpoint or pipeline (user/repo of the hub, too); the number "
        "of classes may differ",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that already holds a run, deleting it")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--trust-code", action="store_true", help="allow the configuration to name classes of any module")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, FLOPs, memory by part, images/s and days, without data or weights, and stop; nothing is written",
    )
    parser.add_argument("--device-name", metavar="NAME", help="of --dry-run: h100 (default), a100, ..., or here for this machine")
    parser.add_argument("--num-processes", type=int, metavar="N", help="of --dry-run: devices, one process each (default 8)")
    parser.add_argument(
        "--mfu", type=float, metavar="SHARE", help="of --dry-run: share of the device's peak reached (default 0.4)"
    )
    own, overrides = split_overrides(arguments, SECTIONS)
    known, unknown = parser.parse_known_args(own)
    names = [*known.config, *known.further]
    plan = {"device": known.device_name, "num_processes": known.num_processes, "mfu": known.mfu}
    given = {name: value for name, value in plan.items() if value is not None}
    if known.dry_run:
        from generative.cli import dry_run

        paths = [find_config(name) for name in names]
        parsed = parse_train_config(paths, [*place_of_run(names), *overrides, *unknown], known.trust_code)
        return dry_run.run(*parsed, dry_run.Plan(**given))
    if given:
        raise UserError(f"--{next(iter(given)).replace('_', '-').replace('device', 'device-name')} is of --dry-run; give both")
    return train(
        [find_config(name) for name in names],
        [*place_of_run(names), *overrides, *unknown],
        known.resume,
        known.overwrite,
        known.print_config,
        known.trust_code,
        init_from=known.init_from,
    )


def place_of_run(names: Sequence[str]) -> list[str]:
    """Overrides that let a run's folder be where it trains, wherever it was before, unless a later configuration says where."""
    for position in reversed(range(len(names))):
        folder = Path(names[position])
        if folder.is_dir() and (folder / CONFIG_FILE).is_file():
            return ["--trainer.output_dir", str(folder)]
        content = read_config(find_config(names[position]))
        settings = content.get("trainer") if isinstance(content, dict) else None
        if isinstance(settings, dict) and "output_dir" in settings:
            return []
    return []


def train(
    config_paths: Path | Sequence[Path],
    overrides: list[str],
    resume: str | None = None,
    overwrite: bool = False,
    print_config: bool = False,
    trust_code: bool = False,
    go_on: str = "--resume latest",
    init_from: Path | None = None,
) -> int:
    """Train a configuration.

    Args:
        config_paths: The configuration, or several, of which later ones win.
        overrides: Values that replace its own.
        resume: Checkpoint to go on from: "latest", "auto", a folder, or None to start anew.
        overwrite: Delete the run that the folder holds.
        print_config: Print the resolved configuration instead.
        trust_code: Allow configurations to name code of one's own.
        go_on: What continues a run that a signal stopped, for the message.
        init_from: Run, checkpoint or pipeline whose weights a new run starts from; a run that goes on has its own.

    Returns:
        Exit code: 0 at the end, 128 + n if signal n stopped the run.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it; choose one of them")
    if init_from is not None and resume not in (None, "auto"):
        raise UserError(
            "--init-from starts a run and --resume goes on with one; choose one of them (--resume auto may do either)"
        )
    chosen, checkpoint = choose_config(config_paths, overrides, resume, trust_code)
    parser, config = chosen.parser, chosen.config
    if print_config:
        print(dump_config(parser, config), end="")
        return 0

    import torch

    from generative.core.lock import hold_folder
    from generative.core.logging import whole_file
    from generative.core.rendezvous import check_agreement
    from generative.core.runtime import build_accelerator
    from generative.core.trackers import start_trackers, tracker_names
    from generative.core.trainer import Trainer
    from metrics.allocator import keep_freed_memory

    keep_freed_memory()
    output_dir = Path(config.trainer.output_dir)
    if config.trainer.num_threads is not None and config.trainer.num_threads > 0:
        torch.set_num_threads(config.trainer.num_threads)
    trackers = tracker_names(config.trainer.trackers)
    accelerator = build_accelerator(config.trainer.mixed_precision, logging_dir=output_dir, trackers=trackers)
    if accelerator.is_main_process:
        # A run killed before its first checkpoint has nothing that --resume auto could lose.
        check_output_dir(output_dir, overwrite, may_hold_run=resume is not None)
        if output_dir.is_dir():
            hold_folder(output_dir)
    check_agreement(shared_settings(config))
    torch.manual_seed(config.seed)
    built = build_config(parser, config)
    resolved = dump_config(parser, config)  # with what was filled in from the data
    trainer = Trainer(built.objective, built.data, built.trainer, accelerator, built.seed, built.evaluation)
    notes: list[str] = []
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint)
    elif init_from is not None:
        notes = trainer.start_from(init_from)
    if accelerator.is_main_process:
        # Only now, with everything built and loaded, is an old run deleted or its configuration replaced: mistakes cost nothing.
        output_dir.mkdir(parents=True, exist_ok=True)
        hold_folder(output_dir)
        if overwrite:
            remove_run(output_dir)
        report_changes(chosen, output_dir, checkpoint)
        if notes:
            print("\n".join(f"note: {note}" for note in notes), file=sys.stderr)
            append_history(output_dir, 0, init_from=str(init_from), notes=notes)
        with whole_file(output_dir / CONFIG_FILE) as partial:
            partial.write_text(resolved, encoding="utf-8")
        say_data(trainer, output_dir)
    start_trackers(accelerator, output_dir, flatten(config), resume_step=trainer.step if checkpoint else None)
    trainer.fit()
    accelerator.end_training()
    if trainer.is_stopped_early:
        if accelerator.is_main_process:
            say_early_stop(trainer, output_dir, go_on)
        return 0
    if trainer.stopped_by and not trainer.is_done:
        if accelerator.is_main_process:
            print(f"stopped at step {trainer.step} of {trainer.total_steps}; a checkpoint was saved, go on with {go_on}")
        return 128 + trainer.stopped_by
    if accelerator.is_main_process:
        usage = trainer.objective.usage.format(run=output_dir)
        print(f"done: '{output_dir / 'pipeline'}' holds the pipeline, {usage}")
    return 0


def shared_settings(config: Namespace) -> dict[str, Any]:
    """What all processes of a job must be started with: versions and values, but places of files, whose content is compared."""
    own = ("trainer.num_workers", "trainer.num_threads", "trainer.progress")
    values = {key: value for key, value in flatten(config).items() if key not in own}
    versions = {name: version(name) for name in ("triptych", "torch")}
    return versions | {key: value for key, value in values.items() if not (isinstance(value, str) and os.sep in value)}


def say_early_stop(trainer: Trainer, output_dir: Path, go_on: str) -> None:
    """Say why a run has ended before its last step, and keep it in its history."""
    from generative.core.best import BEST_CHECKPOINT

    stop = trainer.early_stop
    assert stop is not None
    best = f"'{output_dir / BEST_CHECKPOINT}' is the best, " if stop.best is not None else ""
    print(
        f"stopped early at step {trainer.step} of {trainer.total_steps}: {stop.describe()}; {best}go on with {go_on} "
        f"--trainer.patience {2 * stop.patience}"
    )
    facts = {"score": stop.score, "best": stop.best, "best_step": stop.best_step, "evaluations_since": stop.waited}
    append_history(output_dir, trainer.step, stopped_early=facts)


def choose_config(
    config_paths: Path | Sequence[Path], overrides: list[str], resume: str | None, trust_code: bool
) -> tuple[RunConfig, Path | None]:
    """Choose what is trained: the configuration named, or that of the run that goes on.

    Returns:
        The configuration, and the checkpoint to go on from or None.

    Raises:
        UserError: If there is no such checkpoint, or a configuration is wrong.
    """
    parser, named = parse_train_config(config_paths, overrides, trust_code)
    if resume is None:
        return RunConfig(parser, named), None

    from generative.core.checkpoint import resolve_checkpoint

    named_paths = [config_paths] if isinstance(config_paths, Path) else config_paths
    output_dir = Path(named.trainer.output_dir)
    checkpoint = resolve_checkpoint(output_dir, resume)
    if checkpoint is None:
        return RunConfig(parser, named), None
    for folder in (checkpoint.parent, output_dir):
        if (folder / CONFIG_FILE).is_file():
            path = folder / CONFIG_FILE
            return continue_config(path, output_dir, named, named_paths, overrides, trust_code), checkpoint
    note = (
        f"'{checkpoint.parent}' holds no {CONFIG_FILE}: what the run was trained with is unknown, it goes on with "
        f"{quoted(named_paths)}"
    )
    return RunConfig(parser, named, note=note), checkpoint


def report_changes(chosen: RunConfig, output_dir: Path, checkpoint: Path | None) -> None:
    """Say how a run goes on otherwise than it was, and keep it in its history."""
    from generative.core.checkpoint import read_state

    if chosen.note is not None:
        print(f"note: {chosen.note}", file=sys.stderr)
    for line in describe_changes(chosen.changes):
        print(line)
    facts: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.parent.resolve() != output_dir.resolve():
        facts["continues"] = str(checkpoint)
    if chosen.changes:
        facts["changed"] = {key: {"from": old, "to": new} for key, (old, new) in chosen.changes.items()}
    if checkpoint is not None and facts:
        append_history(output_dir, read_state(checkpoint)["step"], **facts)


def say_data(trainer: Trainer, output_dir: Path) -> None:
    """Say what was found in the data, and write it into the run's folder."""
    from generative.core.logging import DATA_FILE, write_json
    from generative.data.summary import describe_data, summarise_data

    evaluator = trainer.observer.evaluator
    held_out = None if evaluator is None else evaluator.held_out
    found = {"data": trainer.dataset} | ({} if held_out is None else {"evaluation data": held_out})
    for what, data in found.items():
        print("\n".join(summarise_data(data, what)))
    for notice in trainer.notices:
        print(f"note: {notice}", file=sys.stderr)
    write_json(output_dir / DATA_FILE, {what: describe_data(data) for what, data in found.items()} | {"notes": trainer.notices})


def check_output_dir(output_dir: Path, overwrite: bool, may_hold_run: bool = False) -> None:
    """Refuse to mix two runs in one folder.

    Args:
        output_dir: Folder of the run.
        overwrite: An old run is to be deleted.
        may_hold_run: An old run is to go on.

    Raises:
        UserError: If the folder is a file, or already holds a run that is neither resumed nor to be overwritten.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output folder '{output_dir}' is a file; choose another trainer.output_dir")
    if may_hold_run or not any((output_dir / name).exists() for name in (CONFIG_FILE, "pipeline")):
        return
    if not overwrite:
        raise UserError(
            f"'{output_dir}' already holds a run; go on with --resume latest, start anew with --overwrite, "
            "or choose another --trainer.output_dir"
        )
    if Path.cwd().is_relative_to(output_dir.resolve()):
        raise UserError("--overwrite would delete the current folder; choose another trainer.output_dir")


def remove_run(output_dir: Path) -> None:
    """Delete what a run wrote into its folder, and nothing else that lies there."""
    for path in [output_dir / name for name in RUN_FILES] + [*output_dir.glob("checkpoint-*"), *output_dir.glob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
