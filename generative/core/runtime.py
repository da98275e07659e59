"""The Accelerate runtime: devices, processes and precision, with the traps closed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from generative.core.errors import UserError
from generative.core.processes import register_process
from generative.core.rendezvous import meeting

Precision = Literal["no", "bf16", "fp16"]


def build_accelerator(
    mixed_precision: Precision = "no", logging_dir: Path | None = None, trackers: Sequence[str] = ("tensorboard",)
) -> Accelerator:
    """Make the accelerator of this process.

    On a machine without CUDA several processes work with ``accelerate launch --multi_gpu --num_processes 2`` or ``torchrun``.

    Args:
        mixed_precision: ``no`` float32, ``bf16`` or ``fp16`` autocast.
        logging_dir: Where files of trackers go; None for no tracker.
        trackers: Their names, see ``generative.core.trackers``.

    Raises:
        UserError: If fp16 is asked for without CUDA (torch would silently run float32), or if the launcher's process count and
            the accelerator's differ (two processes would write one folder), or their precisions.
        RunError: If the processes of the job do not meet: the port is taken, or some never come.
    """
    has_cuda = torch.cuda.is_available()
    if mixed_precision == "fp16" and not has_cuda:
        raise UserError("mixed_precision fp16 needs a CUDA device, on the CPU it silently runs in float32; use bf16 or no")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # The launcher says "no" whether it was asked to or not.
    if asked not in ("no", mixed_precision):
        raise UserError(
            f"the launcher asks for mixed_precision {asked}, the command for {mixed_precision}; leave the launcher's out and set "
            "the command's (trainer.mixed_precision, or --mixed-precision)"
        )
    expected = launched_processes()
    # Accelerate keeps one precision per process for ever; a second run in this process may want another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    with meeting(expected):
        accelerator = Accelerator(
            cpu=not has_cuda,
            mixed_precision=mixed_precision,
            # The trainer accumulates by itself; said here, as a launcher's environment could say otherwise.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            log_with=(list(trackers) or None) if logging_dir else None,
            project_dir=str(logging_dir) if logging_dir else None,
        )
    if accelerator.num_processes != expected:
        raise UserError(
            f"the launcher asked for {expected} processes but {accelerator.num_processes} would train, each as if alone; "
            f"on a machine without CUDA start with `accelerate launch --multi_gpu --num_processes {expected}` or torchrun"
        )
    register_process()
    return accelerator


def launched_processes() -> int:
    """How many processes the launcher was asked for.

    ``WORLD_SIZE`` tells it, except for ``accelerate launch --cpu --num_processes N``, which starts one process and says nothing:
    there the launcher's own command line, our parent's, is the witness (read where /proc exists). Where the number comes from
    the launcher's config file, only the rendezvous address that it sets for several processes tells: that counts as two.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    at_least = 2 if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ else 1
    command_line = Path(f"/proc/{os.getppid()}/cmdline")
    if not sys.platform.startswith("linux") or not command_line.exists():
        return at_least
    try:
        arguments = command_line.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return at_least
    # ``accelerate launch``, ``accelerate-launch``, ``python -m accelerate.commands.launch``
    if not any(re.fullmatch(r"accelerate([.-].*)?", Path(argument).name) for argument in arguments[:4]):
        return at_least
    for flag, value in zip(arguments, arguments[1:] + [""], strict=True):
        name, _, joined = flag.partition("=")
        if name in ("--num_processes", "--num-processes") and (joined or value).isdigit():
            return int(joined or value)
    return at_least
