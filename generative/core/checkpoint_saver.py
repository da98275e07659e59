"""Checkpoints of a run while it trains: what goes into one, which process writes what, and what else then changes in the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from generative.core import checkpoint as ckpt
from generative.core.checkpoint_writer import CheckpointWriter
from generative.core.links import link_duplicates, link_folder
from generative.core.shared_copy import host_pipeline, save_pipeline
from generative.core.tensor_files import Share, take_share
from generative.core.trained_state import TrainedState
from generative.core.trainer_config import TrainerConfig

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline


class CheckpointSaver(CheckpointWriter):
    """Writes the checkpoints of a run; every process calls it at the same steps.

    Args:
        trained: What they hold.
        config: Of the run.
        accelerator: Its processes.
        is_sharded: Whether what is trained is cut over processes, which then all write; else the main one does.
    """

    def __init__(self, trained: TrainedState, config: TrainerConfig, accelerator: Accelerator, is_sharded: bool) -> None:
        super().__init__(accelerator.process_index, accelerator.num_processes, config.async_checkpoint)
        self.trained = trained
        self.run = config.output_dir
        self.keep_last = config.keep_last_checkpoints
        self.num_writers = accelerator.num_processes if is_sharded else 1

    def save(self, step: int, state: Mapping[str, Any], pipeline: ImagePipeline) -> None:
        """Write the checkpoint of a step, unless it is there, make its pipeline the run's, and delete old ones.

        Args:
            step: The step.
            state: For its state.json.
            pipeline: Of the averages.

        Raises:
            UserError: If the place cannot be written to, now or, in the background, the time before.
            RunError: If the disk is full, then or now, or another process could not write.
        """
        self.wait()
        path = ckpt.checkpoint_path(self.run, step)
        if self._agree_on(not path.exists()):
            self.write(path, self._prepare(state, pipeline), partial(self._publish, path, pipeline))
        elif self.rank == 0:
            self._publish(path, pipeline)

    def _agree_on(self, value: bool) -> bool:
        """What the main process says."""
        return bool(broadcast_object_list([value])[0]) if self.num_processes > 1 else value

    def _prepare(self, state: Mapping[str, Any], pipeline: ImagePipeline) -> Callable[[Path], None] | None:
        """Take what this process writes as it is now, and return what writes it; None for nothing."""
        if self.rank >= self.num_writers:
            return None
        share = take_share(self.trained.files(), self.rank, self.num_writers, copied=self.in_background)
        if self.rank > 0:
            return share.write
        if self.in_background:
            pipeline = host_pipeline(pipeline, self.trained.objective.frozen.values())
        return partial(self._fill, share, self.trained.configs(), {**state, **self.trained.entries()}, pipeline)

    def _fill(
        self, share: Share, configs: Mapping[str, str], state: Mapping[str, Any], pipeline: ImagePipeline, folder: Path
    ) -> None:
        """The main process's part."""
        for name, text in configs.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        share.write(folder)
        save_pipeline(pipeline, folder / ckpt.PIPELINE)
        # Most of it is here already: averages as they are, and frozen parts in the pipeline before.
        weights = sorted((folder / ckpt.PIPELINE).rglob("*.safetensors"))
        before = [self.run / ckpt.PIPELINE / path.relative_to(folder / ckpt.PIPELINE) for path in weights]
        link_duplicates(weights, [*sorted(folder.glob("ema/*/*")), *sorted(folder.glob("networks/*/*")), *before])
        ckpt.write_manifest(folder / ckpt.PIPELINE)
        (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n")

    def _publish(self, checkpoint: Path, pipeline: ImagePipeline) -> None:
        """Make a checkpoint's pipeline the run's, and delete old checkpoints."""
        newest = self.run / ckpt.PIPELINE
        if (checkpoint / ckpt.PIPELINE).is_dir():
            ckpt.write_folder(newest, partial(link_folder, checkpoint / ckpt.PIPELINE, leave_out=(ckpt.MANIFEST,)))
        else:  # a checkpoint of an older version, which has none
            ckpt.write_folder(newest, partial(save_pipeline, pipeline))
        if self.keep_last:
            ckpt.prune_checkpoints(self.run, self.keep_last)
