"""Trackers that show a run while it trains, through Accelerate: TensorBoard, Weights & Biases and the others that it adapts."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from generative.core.errors import UserError
from generative.core.logging import TENSORBOARD, write_json

TRACKERS_FILE = "trackers.json"
"""What a run that goes on needs to go on in the same run of a tracker."""
PROJECT = "triptych"
"""Project of runs in trackers that have projects."""
PACKAGES = {"comet_ml": "comet-ml"}
"""What to install for a tracker, where it is called otherwise."""


def tracker_names(trackers: str | Sequence[str] | None) -> list[str]:
    """Names of trackers, each once.

    Args:
        trackers: A list, or names with commas between them; None for no tracker.

    Raises:
        UserError: If Accelerate has no tracker of a name, or it is not installed.
    """
    given = trackers.split(",") if isinstance(trackers, str) else list(trackers or ())
    names = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    built_in = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"trainer.trackers must name trackers ({', '.join(LOGGER_TYPE_TO_CLASS)}), got {name!r}")
        is_own = not LOGGER_TYPE_TO_CLASS[name].__module__.startswith("accelerate.")
        if name not in built_in and not is_own:
            raise UserError(f"trainer.trackers names {name}, which is not installed: pip install {PACKAGES.get(name, name)}")
    return names


def start_trackers(accelerator: Accelerator, run: Path, config: Mapping[str, Any], resume_step: int | None) -> None:
    """Open the trackers that the accelerator was made with; the main process only.

    TensorBoard keeps its files in the run's folder and shows what it always did; others get the configuration too. A run that
    goes on does so in the same Weights & Biases run, whose id is kept in ``trackers.json``.

    Args:
        accelerator: See ``build_accelerator``.
        run: Folder of the run.
        config: Values of the configuration by dotted key.
        resume_step: Steps that were done when the run goes on; None for a new one. TensorBoard's entries of later ones go.

    Raises:
        UserError: If a tracker cannot be opened, with its own words.
    """
    if not accelerator.is_main_process:
        return
    trackers: list[GeneralTracker] = []
    for name in map(str, accelerator.log_with):
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = [str(run)] if kind.requires_logging_directory else []
        options: dict[str, Any] = {}
        if name == TENSORBOARD:
            options = {"purge_step": None if resume_step is None else resume_step + 1}
        elif name == "wandb":
            options = wandb_options(run, goes_on=resume_step is not None)
        project = TENSORBOARD if name == TENSORBOARD else os.environ.get("WANDB_PROJECT", PROJECT) if name == "wandb" else PROJECT
        try:
            tracker = kind(project, *folder, **options)
            tracker.start()
            if name != TENSORBOARD:
                tracker.store_init_configuration({key: plain_value(value) for key, value in config.items()})
        except Exception as error:  # Whatever another's library raises where it has no login, no network, no disk.
            if name == TENSORBOARD:
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            hint = "; WANDB_MODE=offline keeps the run's data in its folder" if name == "wandb" else ""
            advice = f"log in, or leave it out of trainer.trackers{hint}"
            raise UserError(f"the tracker {name} cannot be opened ({reason}); {advice}") from error
        trackers.append(tracker)
    accelerator.trackers = trackers


def wandb_options(run: Path, goes_on: bool) -> dict[str, Any]:
    """What ``wandb.init`` is called with: the run's name and folder, and an id that it keeps while it goes on."""
    path = run / TRACKERS_FILE
    stored: Any = None
    if goes_on and path.is_file():
        try:
            stored = json.loads(path.read_text())["wandb"]["id"]
        except (OSError, ValueError, LookupError, TypeError):
            print(f"note: '{path}' cannot be read; the run goes on in a new one of Weights & Biases", file=sys.stderr)
    identity = stored if isinstance(stored, str) else os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    write_json(path, {"wandb": {"id": identity}})
    return {"id": identity, "resume": "allow", "name": run.resolve().name, "dir": str(run)}


def plain_value(value: Any) -> bool | int | float | str | None:
    """A value of a configuration as every tracker takes it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
