"""Settings of a run: the ``trainer`` section of a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from generative.core.ema_snapshots import SnapshotType
from generative.core.errors import UserError
from generative.core.rate_scaling import RateScaling
from generative.core.runtime import Precision
from generative.core.schedules import LRSchedule
from generative.core.sharding import ShardMode

MAX_GRID_COLUMNS = 1000


@dataclass(kw_only=True)
class TrainerConfig:
    """Settings of a run.

    Attributes:
        output_dir: Folder of the run.
        total_images: Length of the run, in training images seen (schedules count in images too).
        batch_size: Images per optimizer step, over all processes and micro-batches.
        gradient_accumulation_steps: Micro-batches per process. Exact where losses are means over images and no layer mixes them:
            batch norm and losses that compare with a batch's mean logit see one micro-batch.
        mixed_precision: ``no`` float32, ``bf16``, or ``fp16`` (CUDA only).
        max_grad_norm: Clip each phase's gradient to this L2 norm; null for no clipping.
        lr_schedule: Factor on the learning rates; null for constant.
        scale_lr: Let the learning rates follow the batch size: ``linear`` multiplies those given by batch_size over
            base_batch_size, ``sqrt`` by the square root of that, ``none`` takes them as they are.
        base_batch_size: Batch size that the rates given are for; null for 256.
        horizontal_flip: Flip images at random.
        num_workers: Processes that load data.
        num_threads: Threads that torch computes with on a CPU; null for torch's default, one for each core. Beside other busy
            processes fewer are faster: 1 never waits for another. Another number rounds sums otherwise.
        compile: Compile the networks with torch.compile.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them, in every trained network
            that can: less memory for about a third more time, and the same gradients. Compiled networks whose norms have state
            (GANs' and discriminators') cannot.
        channels_last: Keep 4-D weights in channels-last memory (faster convolutions in bf16).
        shard: ``full`` cuts networks, gradients, optimizer states and averages over all processes (FSDP2): memory falls with
            their number. ``hybrid`` cuts them over groups of processes, each of which holds everything. ``none`` cuts nothing.
        shard_group_size: Processes of a group of ``hybrid``; null for those of one machine.
        log_interval_steps: Steps between entries of metrics.jsonl and TensorBoard.
        sample_interval_steps: Steps between sample grids; null for the end only.
        evaluate_interval_steps: Steps between evaluations (step 0 included); null for the end only.
        evaluate_interval_images: Training images between evaluations, in the place of steps: at the first step that passes a
            multiple of it.
        checkpoint_interval_steps: Steps between checkpoints; null for the end only.
        async_checkpoint: Write checkpoints in the background, from a copy in the host's memory, while training goes on.
        keep_last_checkpoints: Older checkpoints are deleted; null keeps all.
        keep_best: Name of a score, such as ``frechet_distance``: the checkpoint of its best evaluation is kept as
            ``checkpoint-best``, however old it becomes. Null for none.
        patience: End the run after so many evaluations in which ``keep_best``'s score has not improved; null for never. A run
            that ended so goes on with more.
        ema_snapshot_interval_images: Images between snapshots of the power-function averages (``PowerEMA``), kept for good in
            ``ema-snapshots/``, of which `generative posthoc-ema` makes averages of any length; null for none.
        ema_snapshot_dtype: Precision of the weights in the snapshots, ``float16`` or ``float32``.
        grid_images_per_class: Columns of the sample grid.
        progress: Show a progress bar.
        trackers: Where the log, the scores and the grids are shown, names with commas or a list: ``tensorboard`` (files in the
            run's folder), ``wandb`` and the others of Accelerate; null for none.
    """

    output_dir: Path
    total_images: int
    batch_size: int = 256
    gradient_accumulation_steps: int = 1
    mixed_precision: Precision = "no"
    max_grad_norm: float | None = None
    lr_schedule: LRSchedule | None = None
    scale_lr: RateScaling = "none"
    base_batch_size: int | None = None
    horizontal_flip: bool = False
    num_workers: int = 0
    num_threads: int | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    channels_last: bool = False
    shard: ShardMode = "none"
    shard_group_size: int | None = None
    log_interval_steps: int = 50
    sample_interval_steps: int | None = None
    evaluate_interval_steps: int | None = None
    evaluate_interval_images: int | None = None
    checkpoint_interval_steps: int | None = 1000
    async_checkpoint: bool = False
    keep_last_checkpoints: int | None = 2
    keep_best: str | None = None
    patience: int | None = None
    ema_snapshot_interval_images: int | None = None
    ema_snapshot_dtype: SnapshotType = "float16"
    grid_images_per_class: int = 10
    progress: bool = True
    trackers: str | list[str] | None = "tensorboard"

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        for name in (
            "total_images",
            "batch_size",
            "base_batch_size",
            "gradient_accumulation_steps",
            "log_interval_steps",
            "sample_interval_steps",
            "evaluate_interval_steps",
            "evaluate_interval_images",
            "patience",
            "checkpoint_interval_steps",
            "keep_last_checkpoints",
            "ema_snapshot_interval_images",
            "grid_images_per_class",
            "num_threads",
            "shard_group_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"trainer.{name} must be at least 1, got {value}")
        if self.base_batch_size is not None and self.scale_lr == "none":
            raise UserError(
                f"trainer.base_batch_size is {self.base_batch_size} but learning rates are not scaled; set trainer.scale_lr to "
                "linear or sqrt, or leave it out"
            )
        if self.evaluate_interval_steps and self.evaluate_interval_images:
            raise UserError(
                f"trainer.evaluate_interval_steps is {self.evaluate_interval_steps} and trainer.evaluate_interval_images "
                f"{self.evaluate_interval_images}; give one of them, the other as null"
            )
        if self.patience is not None and self.keep_best is None:
            raise UserError(
                f"trainer.patience is {self.patience} but no score is named whose improvement it waits for; set trainer.keep_best"
            )
        if self.patience is not None and self.evaluate_interval_steps is None and self.evaluate_interval_images is None:
            raise UserError(
                f"trainer.patience is {self.patience} but evaluations are at the end only; set trainer.evaluate_interval_images "
                "or trainer.evaluate_interval_steps"
            )
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise UserError(f"trainer.max_grad_norm must be above 0, or null for no clipping, got {self.max_grad_norm}")
        if self.num_workers < 0:
            raise UserError(f"trainer.num_workers must not be negative, got {self.num_workers}")
        if self.grid_images_per_class > MAX_GRID_COLUMNS:
            raise UserError(
                f"trainer.grid_images_per_class must be at most {MAX_GRID_COLUMNS}, got {self.grid_images_per_class}: a grid is "
                "sampled at once"
            )
