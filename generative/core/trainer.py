"""The one trainer: draw micro-batches, run the phases that are due, then schedules, averages, counters, logs and checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from tqdm.auto import tqdm

from generative.core import checkpoint as ckpt
from generative.core.best import BestCheckpoint
from generative.core.checkpoint_saver import CheckpointSaver
from generative.core.early_stop import EarlyStop
from generative.core.ema import start_average, update_average
from generative.core.ema_snapshots import EMASnapshotWriter
from generative.core.errors import RunError, UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.initial_weights import start_from
from generative.core.lock import check_folder, hold_folder, release_folder
from generative.core.logging import FEATURES_FOLDER, SAMPLES_FOLDER, progress_interval
from generative.core.objective import Objective
from generative.core.observer import RunObserver
from generative.core.rate_scaling import describe_scaling, rate_factor
from generative.core.rendezvous import check_agreement
from generative.core.resuming import check_state
from generative.core.schedules import Constant
from generative.core.seeding import keyed_generator
from generative.core.sharding import Sharding, check_networks, check_optimizers, find_blocks, separate_groups, shard_mesh
from generative.core.shared_copy import share_weights
from generative.core.signals import WorkerWatch, catch_signals, loader_workers, survive_first_signal
from generative.core.start_checks import check_fit, check_sampling, check_scoring_network, describe_start
from generative.core.step import PhaseRunner, average_buffers, checkpoint_activations
from generative.core.stopping import StopVote
from generative.core.trained_state import TrainedState
from generative.core.trainer_config import TrainerConfig
from generative.core.types import Batch
from generative.data.base import ImageDataset
from generative.data.finish import finish_batch
from generative.data.sampler import build_loader

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline


class Trainer:
    """Trains any objective.

    Args:
        objective: What to train, and how.
        dataset: Training images.
        config: Settings.
        accelerator: Device, processes and precision, see ``build_accelerator``.
        seed: Seed of data order, noise and dropout.
        evaluator: Scores the averaged pipeline during training and at the end.

    Attributes:
        notices: What to know before training, of the data and of scaled learning rates, one sentence each.

    Raises:
        UserError: If data and objective do not fit, the batch does not divide over micro-batches and processes, or another
            process of the job was given something else.
    """

    def __init__(
        self,
        objective: Objective,
        dataset: ImageDataset,
        config: TrainerConfig,
        accelerator: Accelerator,
        seed: int = 0,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.objective = objective
        if accelerator.num_processes > 1:  # first, as one that a check stops would leave the others waiting
            check_agreement(describe_start(objective, dataset, evaluator, config, seed, self._frozen_fingerprints))
        check_fit(objective, dataset)
        self.notices = dataset.notices + ([] if evaluator is None else evaluator.match_classes(dataset))
        self.dataset = dataset
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        for name in ("evaluate_interval_steps", "evaluate_interval_images", "keep_best"):
            if getattr(config, name) and evaluator is None:
                raise UserError(f"trainer.{name} is set but there is no evaluation; add an `evaluation` section")
        check_scoring_network(objective, evaluator)
        check_sampling(objective, evaluator)
        self.step = 0
        self.phases = objective.phases()
        self.repeats = max(phase.repeats for phase in self.phases)
        self.images_per_step = config.batch_size * self.repeats
        self.total_steps = math.ceil(config.total_images / self.images_per_step)
        self.num_slots = config.gradient_accumulation_steps * accelerator.num_processes
        if config.batch_size % self.num_slots:
            raise UserError(
                f"trainer.batch_size {config.batch_size} does not divide into {config.gradient_accumulation_steps} micro-batches "
                f"on {accelerator.num_processes} processes; choose a multiple of {self.num_slots}"
            )
        self.schedule = config.lr_schedule or Constant()
        self.snapshots = self._snapshot_writer()
        self.observer = RunObserver(objective, dataset, config, accelerator, seed, evaluator, self.total_steps)
        self._stop_signal: int | None = None
        self._leaves = False
        self._saved_step: int | None = None
        self._draw_error: UserError | RunError | None = None
        self._pipeline: ImagePipeline | None = None
        mesh = shard_mesh(config.shard, config.shard_group_size, accelerator.num_processes, accelerator.device)
        self.sharding = Sharding(mesh, len(self.phases))
        self._place_networks()
        self._build_optimizers()
        if evaluator is not None:
            evaluator.prepare_or_skip(accelerator, dataset)
            evaluator.features_root = config.output_dir / FEATURES_FOLDER
            evaluator.should_stop = lambda: self._stop_signal is not None
        self.best: BestCheckpoint | None = None
        if evaluator is not None and config.keep_best:
            self.best = BestCheckpoint(config.output_dir, config.keep_best, evaluator.directions())
        self.early_stop: EarlyStop | None = None
        if self.best is not None and config.patience is not None:
            self.early_stop = EarlyStop(self.best.score, self.best.sign, config.patience)
        self.runner = PhaseRunner(
            objective,
            self.optimizers,
            accelerator,
            seed,
            config.gradient_accumulation_steps,
            config.max_grad_norm,
            self.sharding,
        )

    # ------------------------------------------------------------------ set-up

    def _place_networks(self) -> None:
        memory_format = torch.channels_last if self.config.channels_last else torch.preserve_format
        for network in self.objective.networks.values():
            network.to(self.accelerator.device).to(memory_format=memory_format)
        # Frozen parts keep their layout: they go into saved pipelines themselves, not as copies.
        for network in self.objective.frozen.values():
            network.to(self.accelerator.device).requires_grad_(False).eval()
        for buffer in self.objective.buffers.values():
            buffer.data = buffer.data.to(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            networks = self.objective.networks.values()
            trained = [tensor for network in networks for tensor in [*network.parameters(), *network.buffers()]]
            for tensor in [*trained, *self.objective.buffers.values()]:
                tensor.data.copy_(broadcast(tensor.data))
        followed = {name: self.objective.networks[spec.network] for name, spec in self.objective.ema.items()}
        start = share_weights if self.sharding.is_active else start_average
        self.averages: dict[str, nn.Module] = {name: start(network) for name, network in followed.items()}
        if self.config.gradient_checkpointing:
            checkpoint_activations(self.objective.networks, self.config.compile)
        if self.config.compile:
            for network in self.objective.networks.values():
                # FSDP acts between blocks, which a graph of all of them would leave it no room for.
                for part in find_blocks(network) if self.sharding.is_active else [network]:
                    part.compile()
        if self.sharding.is_active:
            check_networks(self.objective.networks, self.objective.shard_obstacle, self.config)
            for network in self.objective.networks.values():
                self.sharding.shard(network)
            for name, network in followed.items():
                self.sharding.shard_average(self.averages[name], network)

    def _build_optimizers(self) -> None:
        self.optimizers: dict[str, Any] = {}
        config, given = self.config, {}
        scale = rate_factor(config.scale_lr, config.batch_size, config.base_batch_size)
        for name, factory in self.objective.optimizers.items():
            try:
                optimizer = factory(separate_groups(self.objective.parameter_groups(name)))
            except (TypeError, ValueError) as error:
                raise UserError(f"optimizer '{name}' cannot be built: {error}") from error
            given[name] = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"] = scale * group["lr"]
            self.optimizers[name] = self.accelerator.prepare_optimizer(optimizer)
        if self.sharding.is_active:
            check_optimizers({name: optimizer.optimizer for name, optimizer in self.optimizers.items()}, self.config)
        if config.scale_lr != "none":
            rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
            self.notices.append(describe_scaling(config.scale_lr, config.batch_size, config.base_batch_size, given, rates))
        self._trained = TrainedState(self.objective, self.averages, self.optimizers, self.accelerator.scaler)
        self.saver = CheckpointSaver(self._trained, self.config, self.accelerator, is_sharded=self.sharding.is_active)

    def _snapshot_writer(self) -> EMASnapshotWriter | None:
        interval, dtype = self.config.ema_snapshot_interval_images, self.config.ema_snapshot_dtype
        if interval is None:
            return None
        images = self.total_steps * self.images_per_step
        return EMASnapshotWriter(self.config.output_dir, self.objective.ema, interval, dtype, self.images_per_step, images)

    @property
    def images_seen(self) -> int:
        """Training images drawn so far, every repeat's fresh data counted."""
        return self.step * self.images_per_step

    # ------------------------------------------------------------------ training

    def train_step(self, micro_batches: list[list[Batch]]) -> None:
        """One training step: every phase that is due, then averages and counters.

        Args:
            micro_batches: For each repeat (fresh data), this process's micro-batches.
        """
        self._pipeline = None
        factor = self.schedule.factor(self.images_seen, self.images_per_step, self.config.total_images)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        images_seen = self.images_seen
        caches: list[list[dict[str, Any]]] = [[{} for _ in batches] for batches in micro_batches]
        for phase in self.phases:
            if self.step % phase.interval == 0:
                for repeat in range(phase.repeats):
                    values = self.runner.run(phase, repeat, self.step, images_seen, micro_batches[repeat], caches[repeat])
                    self.observer.record(self.step, phase.name, values)
        average_buffers(self.objective.networks, self.accelerator)
        self.step += 1
        for name, spec in self.objective.ema.items():
            beta = spec.profile.decay(self.images_seen, self.images_per_step)
            update_average(self.averages[name], self.objective.networks[spec.network], beta, spec.buffers)

    def fit(self, resume_from: Path | None = None) -> None:
        """Train to the end, or until SIGTERM or SIGINT, which save and stop.

        Args:
            resume_from: A checkpoint folder of the same configuration.

        Raises:
            DivergenceError: If a loss becomes NaN or infinite.
            UserError: If the checkpoint does not fit, or an image cannot be read: what was trained so far is saved first.
            RunError: If a loader worker dies (what was trained so far is saved first), another process does, or the run's folder
                is deleted or moved.
        """
        config = self.config
        if self.accelerator.is_main_process:
            config.output_dir.mkdir(parents=True, exist_ok=True)
            hold_folder(config.output_dir)
            self._tidy()
        try:
            self.accelerator.wait_for_everyone()
            self._fit(resume_from)
        except OSError:
            check_folder(config.output_dir)  # says so where a file could not be written because the run's folder is gone
            raise
        finally:
            self.saver.join()
            release_folder(config.output_dir)

    def _tidy(self) -> None:
        """Delete what a kill left half-written; the main process alone, as two that delete a file meet."""
        ckpt.remove_leftovers(self.config.output_dir)
        ckpt.remove_leftovers(self.config.output_dir / SAMPLES_FOLDER)
        if self.snapshots is not None:
            self.snapshots.tidy()

    def _fit(self, resume_from: Path | None) -> None:
        config = self.config
        if resume_from is not None:
            self.load_checkpoint(resume_from)
        later = [path for path in ckpt.list_checkpoints(config.output_dir) if ckpt.step_of(path) > self.step]
        if later:
            raise UserError(f"'{config.output_dir}' holds '{later[0].name}' of another run; resume it or choose another folder")
        if self.snapshots is not None:
            self.snapshots.start()
            self._say(self.snapshots.describe(self.averages))
        self.observer.start(self.step, self.images_seen)
        if self.best is not None:
            best = self.best.start(self.observer.log_file.kept)
            if best is not None and self.accelerator.is_main_process:
                self.best.keep(best)
        if self.early_stop is not None:
            self.early_stop.start(self.observer.log_file.kept)
        loader = build_loader(
            self.dataset,
            seed=self.seed,
            batch_size=config.batch_size,
            num_slots=self.num_slots,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            repeats=self.repeats,
            start_step=self.step,
            horizontal_flip=config.horizontal_flip,
            num_workers=config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            finish=False,
        )
        loader.worker_init_fn = survive_first_signal
        batches, workers = loader_workers(lambda: iter(loader))
        watch = WorkerWatch(workers)
        # At step 0 that is the untrained network; after a resume, what a kill may have cut short.
        if self.step < self.total_steps and self.observer.is_grid_due(self.step):
            self.observer.sample_grid(self.step, self.sampling_pipeline, only_if_missing=True)
        self._evaluate_if_due()
        self._snapshot_if_due()
        bar = tqdm(
            total=self.total_steps * self.images_per_step,
            initial=self.images_seen,
            desc=config.output_dir.name,
            unit="img",
            unit_scale=True,
            mininterval=progress_interval(),
            disable=not (config.progress and self.accelerator.is_main_process),
        )
        with catch_signals(self.request_stop), watch.installed(), bar:
            self.observer.start_clock(self.images_seen)
            for micro_batches in self._batches_of_steps(batches, watch):
                self.train_step(micro_batches)
                bar.update(self.images_per_step)
                self._after_step(bar)
            # Still with signals caught: one that comes now must not cut the last checkpoint short.
            self._check_weights()
            self.save_checkpoint()
            self.saver.wait()
            self._raise_draw_error()
            if self.step >= self.total_steps:
                self.observer.sample_grid(self.step, self.sampling_pipeline)
                self._evaluate_if_due()
            elif self.is_stopped_early:
                self.observer.sample_grid(self.step, self.sampling_pipeline, only_if_missing=True)

    def _batches_of_steps(self, batches: Iterator[Batch], watch: WorkerWatch) -> Iterator[list[list[Batch]]]:
        """Micro-batches of each step to the end of the run, or until all processes leave the loop, at the same step."""
        if self._leaves:
            return
        vote = StopVote(self.accelerator.device)

        def draw() -> list[list[Batch]]:
            batches_of_step = self._draw(batches, watch)
            vote.post(self._stop_signal, self._draw_error is not None or self.saver.has_failed)
            return batches_of_step

        drawn = draw() if self.step < self.total_steps else []
        for remaining in range(self.total_steps - self.step, 0, -1):
            number, has_failed = vote.read()
            if number or has_failed:
                self._stop_signal = number or self._stop_signal
                return
            ahead = draw() if vote.is_late and remaining > 1 else None
            yield drawn
            if self._leaves:
                if ahead is not None:
                    vote.read()  # The others have posted theirs too; none must be under way when the group ends.
                return
            if remaining > 1:
                drawn = draw() if ahead is None else ahead

    def _draw(self, batches: Iterator[Batch], watch: WorkerWatch) -> list[list[Batch]]:
        """This process's micro-batches of a step, for each repeat; if they cannot be had, ``_draw_error`` says why."""
        try:
            with self.observer.gauges.waiting(), watch.waiting():
                return [
                    [self._to_device(next(batches)) for _ in range(self.config.gradient_accumulation_steps)]
                    for _ in range(self.repeats)
                ]
        except (UserError, RunError) as error:
            self._draw_error = error
            return []

    def _raise_draw_error(self) -> None:
        """Raise what kept a process from drawing its batches, on every process.

        Raises:
            UserError: On the process whose image cannot be read.
            RunError: On the process whose loader worker died, and on all others, which say which process it was.
        """
        errors = [self._draw_error and str(self._draw_error)]
        if self.accelerator.num_processes > 1:
            errors = gather_object(errors)
        if self._draw_error is not None:
            raise type(self._draw_error)(f"{self._draw_error}; a checkpoint of step {self.step} was saved") from self._draw_error
        for rank, message in enumerate(errors):
            if message is not None:
                raise RunError(f"process {rank} of the job could not go on ({message}); this one stops too")

    def _after_step(self, bar: Any) -> None:
        """Logs, grids, evaluations and checkpoints that are due; at the end of the run ``fit`` makes the last ones."""
        config = self.config
        if self.step % config.log_interval_steps == 0 or self.step == self.total_steps:
            rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
            entry = self.observer.log(self.step, self.images_seen, rates)
            bar.set_postfix({name: f"{value:.3f}" for name, value in entry.items() if name.endswith("/loss")})
        # Before the checkpoint: a run that goes on from it then lacks none.
        with self.observer.paused_clock():
            self._snapshot_if_due()
        if self.step == self.total_steps:
            return
        checkpoint = config.checkpoint_interval_steps is not None and self.step % config.checkpoint_interval_steps == 0
        evaluation = self.observer.is_evaluation_due(self.step, self.images_seen)
        grid = self.observer.is_grid_due(self.step)
        with self.observer.paused_clock():
            if checkpoint or grid or evaluation:
                self._check_weights()
            if checkpoint:
                self.save_checkpoint()
            if grid:
                self.observer.sample_grid(self.step, self.sampling_pipeline)
            self._evaluate_if_due()

    def _snapshot_if_due(self) -> None:
        """Keep the power-function averages as they are, for averages of other lengths after training."""
        if self.snapshots is not None and self.snapshots.is_due(self.images_seen):
            self._check_weights()
            averages = {name: share_weights(self.averages[name]) for name in self.snapshots.specs}  # of which all have parts
            if self.accelerator.is_main_process:
                check_folder(self.config.output_dir)
                self.snapshots.write(averages, self.images_seen, self.step)

    def _check_weights(self) -> None:
        """Stop if anything that a checkpoint would hold is NaN or infinite, so that none ever is."""
        averages = {f"{name} (average)": average for name, average in self.averages.items()}
        self.observer.check_finite(self.step, {**self.objective.networks, **averages}, self.objective.buffers)

    def _evaluate_if_due(self) -> None:
        before = self.observer.last_evaluation
        self.observer.evaluate_if_due(self.step, self.images_seen, self.sampling_pipeline)
        if self.observer.is_interrupted:
            # No further step: when the run goes on, it begins with this evaluation.
            self._leaves = True
            self._stop_signal = max(signal or 0 for signal in gather_object([self._stop_signal])) or None
        evaluation = self.observer.last_evaluation
        if self.best is not None and evaluation is not None and evaluation is not before:
            self._keep_best(self.best, evaluation)
            if self.early_stop is not None:
                self.early_stop.update(self.step, evaluation.scores.get(self.early_stop.score))
        self._leaves = self._leaves or self.is_stopped_early

    def _keep_best(self, best: BestCheckpoint, evaluation: Evaluation) -> None:
        """Keep this step's checkpoint if its score is the best so far; an untrained network's is not kept."""
        if best.score not in evaluation.scores:
            unknown = f"the evaluation has no score '{best.score}' for trainer.keep_best, it has {', '.join(evaluation.scores)}"
            if self.step == 0:
                raise UserError(unknown)
            self._say(f"{unknown}; no best checkpoint is kept")
        elif self.step > 0 and best.improves(evaluation.scores[best.score]):
            if self._saved_step != self.step:
                self.save_checkpoint()
            self.saver.wait()
            best.value = evaluation.scores[best.score]
            if self.accelerator.is_main_process:
                best.keep(self.step)

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return finish_batch({key: value.to(device, non_blocking=True) for key, value in batch.items()})  # type: ignore[arg-type, attr-defined]

    def sampling_pipeline(self) -> ImagePipeline:
        """The pipeline of the averaged networks, ready to sample: one for all that a step asks of it.

        Its networks share their weights with the averages and nothing else, so that nothing it does reaches the training; it is
        good until training goes on.
        """
        if self._pipeline is None:
            self._pipeline = self._build_pipeline()
        return self._pipeline

    def _build_pipeline(self) -> ImagePipeline:
        names = self.objective.networks if self.objective.sampling_networks is None else self.objective.sampling_networks
        networks = {name: share_weights(self.averages.get(name, self.objective.networks[name])).eval() for name in names}
        self.objective.prepare_for_sampling(
            networks, keyed_generator(self.seed, self.step, "prepare_for_sampling", device=self.accelerator.device)
        )
        for network in networks.values():
            network.eval()
        pipeline = self.objective.pipeline(networks)
        if self.objective.uses_labels and self.dataset.has_class_names:
            pipeline.class_names = self.dataset.class_names
        return pipeline

    # ------------------------------------------------------------------ stopping

    def request_stop(self, signal_number: int) -> None:
        """Ask for a checkpoint and an end after the current step; of several processes, after the next."""
        self._stop_signal = signal_number

    @property
    def stopped_by(self) -> int | None:
        """Number of the signal that ended ``fit`` early, if any."""
        return self._stop_signal

    @property
    def is_stopped_early(self) -> bool:
        """Whether the run has ended before its last step, for want of improvement."""
        return self.early_stop is not None and self.early_stop.is_reached and self.step < self.total_steps

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and the evaluation at the end, if there is one, was not stopped."""
        return self.step >= self.total_steps and not self.observer.is_interrupted

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """Counters and settings that a checkpoint records (and that a resumed run must share)."""
        return {
            "format_version": ckpt.FORMAT_VERSION,
            "step": self.step,
            "images_seen": self.images_seen,
            "seed": self.seed,
            "batch_size": self.config.batch_size,
            "repeats": self.repeats,
            "num_slots": self.num_slots,
            "mixed_precision": self.accelerator.mixed_precision,
            "data_fingerprint": self.dataset.fingerprint,
            "optimizers": {name: type(optimizer.optimizer).__name__ for name, optimizer in self.optimizers.items()},
            "objective": {"class": type(self.objective).__name__, **self.objective.identity()},
            "frozen": self._frozen_fingerprints,
            "learning_rates": self.learning_rates(),
        }

    @cached_property
    def _frozen_fingerprints(self) -> dict[str, str]:
        """sha256 of everything that is loaded and held fixed, by name; computed once, as nothing changes it."""
        return {name: ckpt.fingerprint_network(network) for name, network in sorted(self.objective.frozen.items())}

    def learning_rates(self) -> dict[str, float]:
        """Rate of the next step by optimizer (that of the first group, where groups differ)."""
        factor = self.schedule.factor(self.images_seen, self.images_per_step, self.config.total_images)
        return {name: optimizer.param_groups[0]["initial_lr"] * factor for name, optimizer in self.optimizers.items()}

    def save_checkpoint(self) -> None:
        """Write the checkpoint of this step with the pipeline of its averages, and the latter as the run's; keep the last few.

        With ``async_checkpoint`` it is there once the next one is begun, or ``fit`` ends.
        """
        pending = self.observer.pending_state()
        if self.accelerator.is_main_process:
            check_folder(self.config.output_dir)
        self.saver.save(self.step, {**self.state(), "pending_log": pending}, self.sampling_pipeline())
        self._saved_step = self.step

    def start_from(self, source: Path) -> list[str]:
        """Take networks and averages from another run, checkpoint or pipeline; steps, optimizers and data start anew.

        Returns:
            What the user should know, a line each; see ``initial_weights.start_from``.

        Raises:
            UserError: If the source does not fit.
        """
        self._pipeline = None
        return start_from(source, self.objective.networks, self.averages, self._frozen_fingerprints)

    def load_checkpoint(self, folder: Path) -> None:
        """Continue from a checkpoint: the run goes on bit-equal to one never stopped.

        Raises:
            UserError: If it is damaged, or of another model, data set, seed or batch geometry.
        """
        ckpt.verify_manifest(folder)
        self._pipeline = None
        saved = ckpt.read_state(folder)
        for note in check_state(folder, saved, self.state()):
            self._say(note)
        self._trained.load(folder, saved)
        self.step = saved["step"]
        # Absent from checkpoints of an older version: the next entry is then the mean of the steps from here on.
        self.observer.load_pending(saved.get("pending_log", []))
        before = saved.get("learning_rates", {})
        for name, rate in self.learning_rates().items():
            if not math.isclose(rate, before.get(name, rate), rel_tol=1e-9):
                self._say(f"learning rate of '{name}' at step {self.step}: {before[name]:.6g} -> {rate:.6g}")

    def _say(self, note: str) -> None:
        """Print a note, once for all processes."""
        if self.accelerator.is_main_process:
            print(f"note: {note}", file=sys.stderr)
