"""What is written down while a run trains: log entries, sample grids and evaluations; and the watch for divergence."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from generative.core import checkpoint as ckpt
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.gauges import build_gauges
from generative.core.generation import SampleRequest
from generative.core.images import images_to_float
from generative.core.lock import check_folder
from generative.core.logging import (
    EVALUATION_FILE,
    SAMPLES_FOLDER,
    RunLog,
    log_image,
    read_real_scores,
    save_grid,
    write_json,
)
from generative.core.objective import Objective
from generative.core.scoring_passes import gather_local
from generative.core.shared_copy import share_weights
from generative.core.tensor_parts import is_sharded, local_part
from generative.core.trainer_config import TrainerConfig
from generative.core.types import Batch, Losses, Networks
from generative.core.watch import Watch
from generative.data.base import ImageDataset

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline

MAX_GRID_CLASSES = 10
"""Rows of a sample grid: the first classes, where there are more."""

DIAGNOSIS_CLASSES = 4
DIAGNOSIS_IMAGES_PER_CLASS = 8
"""Real images that a diagnosis compares with: 32, so that it costs a fraction of a step."""


class DivergenceError(RuntimeError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class RunObserver:
    """Observes one run; nothing it does changes what is trained.

    Args:
        objective: What is trained.
        dataset: Training images, for the grid of real ones and their score.
        config: Settings of the run.
        accelerator: Its processes share evaluations; the main one writes.
        seed: Seed of the grids.
        evaluator: Scores pipelines; None for no scores.
        total_steps: Length of the run.

    Attributes:
        last_evaluation: Result of the newest evaluation.
        is_interrupted: Whether an evaluation was stopped, on every process: it is due again when the run goes on.
        gauges: Measure how well the run uses its machine.
    """

    def __init__(
        self,
        objective: Objective,
        dataset: ImageDataset,
        config: TrainerConfig,
        accelerator: Accelerator,
        seed: int,
        evaluator: Evaluator | None,
        total_steps: int,
    ) -> None:
        self.objective = objective
        self.dataset = dataset
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        self.evaluator = evaluator
        self.total_steps = total_steps
        self.last_evaluation: Evaluation | None = None
        self.is_interrupted = False
        self._real_scores: dict[str, float] | None = None
        self._pending: list[tuple[int, str, Losses]] = []
        self._watch = Watch(objective.warnings)
        self._diagnosis_batch: Batch | None = None
        self.gauges = build_gauges(objective, dataset, accelerator, config.mixed_precision)

    def start(self, step: int, images_seen: int) -> None:
        """Open the log for a run that goes on from ``step``, and write the grid of real images."""
        if self.accelerator.is_main_process:
            real = self._save_grid(self._real_images(), "real.png", self._row_names())
            if step == 0:
                log_image(self.accelerator, "real", real, step)
        self.log_file = RunLog(self.config.output_dir, self.accelerator, step)
        self._watch.resume(self.log_file.kept)
        self.start_clock(images_seen)

    def start_clock(self, images_seen: int) -> None:
        """Count images per second from here on."""
        self._clock, self._clock_images = time.perf_counter(), images_seen

    @contextmanager
    def paused_clock(self) -> Iterator[None]:
        """Time spent inside, on anything but training, does not count in images per second."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def record(self, step: int, phase: str, values: Losses) -> None:
        """Take the values of one phase; they are read from the device only when logged or checked."""
        self._pending.append((step, phase, values))

    def pending_state(self) -> list[list[Any]]:
        """What was recorded since the last entry, for a checkpoint: step, phase, and of every process the values by name."""
        state: list[list[Any]] = []
        for step, phase, values in self._pending:
            numbers = torch.stack([value.float() for value in values.values()])[None]
            numbers = self.accelerator.gather(numbers) if self.accelerator.num_processes > 1 else numbers
            state.append([step, phase, list(values), numbers.tolist()])
        return state

    def load_pending(self, state: list[list[Any]]) -> None:
        """Take up what ``pending_state`` saved, so that the next entry is the mean over all its steps.

        Where as many processes saved it, each takes its own values, and the entry is bit-equal to one of a run never stopped.
        Else each takes the mean of all: the entry is a mean over processes.
        """
        device, rank, num_processes = self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes
        self._pending = []
        for step, phase, names, numbers in state:
            values = torch.tensor(numbers, dtype=torch.float32, device=device)  # (processes that saved, names)
            mine = values[rank] if len(values) == num_processes else values.mean(0)
            self._pending.append((step, phase, dict(zip(names, mine, strict=True))))

    def check_finite(
        self, step: int, networks: Mapping[str, nn.Module] | None = None, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        """Stop on a NaN or infinite value: when logging and before saving only, as reading losses each step would stall a GPU.

        Args:
            step: Steps done.
            networks: Look at these networks too, their weights and buffers: the last step can spoil them without a loss having
                shown it yet.
            buffers: Look at these buffers of the objective too.

        Raises:
            DivergenceError: On every process, if one of them met such a value.
        """
        message = ""
        for at_step, phase, values in self._pending:
            for name, value in values.items():
                # Under fp16 an infinite gradient is the loss scaler's everyday business: it skips the step.
                if name == "grad_norm" and self.accelerator.mixed_precision == "fp16":
                    continue
                if not message and not bool(torch.isfinite(value)):
                    message = f"{phase}/{name} became {float(value)} at step {at_step}"
        for name, network in (networks or {}).items():
            for kind, tensors in (("weights", network.parameters()), ("buffers", saved_buffers(network))):
                if not message and not all(bool(torch.isfinite(local_part(tensor)).all()) for tensor in tensors):
                    message = f"{kind} of network '{name}' became NaN or infinite by step {step}"
        for name, buffer in (buffers or {}).items():
            if not message and not bool(torch.isfinite(buffer).all()):
                message = f"the objective's buffer '{name}' became NaN or infinite by step {step}"
        # Every process must stop, or the others would wait for this one for ever.
        count = torch.tensor([float(bool(message))], device=self.accelerator.device)
        if not bool(self.accelerator.gather(count).sum()):
            return
        kept = ckpt.list_checkpoints(self.config.output_dir)
        last = f"the last good checkpoint is '{kept[-1]}'" if kept else "there is no checkpoint yet"
        if self.accelerator.num_processes > 1:
            message = next(each for each in gather_object([message]) if each)  # all end with the same sentence
        raise DivergenceError(
            f"training diverged: {message}; {last}; "
            "lower the learning rate, clip gradients (trainer.max_grad_norm) or use float32"
        )

    def log(self, step: int, images_seen: int, learning_rates: dict[str, float]) -> dict[str, float]:
        """Write the mean of the values recorded since the last entry.

        Args:
            step: Steps done.
            images_seen: Training images seen.
            learning_rates: By optimizer.

        Returns:
            The entry.
        """
        self.check_finite(step)
        sums: dict[str, list[Tensor]] = {}
        for _, phase, values in self._pending:
            for name, value in values.items():
                sums.setdefault(f"{phase}/{name}", []).append(value)
        self._pending.clear()
        names = sorted(sums)
        means = torch.stack([torch.stack(sums[name]).mean() for name in names])
        means = self.accelerator.reduce(means, reduction="mean") if self.accelerator.num_processes > 1 else means
        now = time.perf_counter()
        entry = dict(zip(names, means.tolist(), strict=True))
        entry["images_per_second"] = (images_seen - self._clock_images) / (now - self._clock)
        entry.update(self.gauges.read(entry["images_per_second"], now - self._clock))
        entry.update({f"lr/{name}": rate for name, rate in learning_rates.items()})
        entry.update({f"diagnosis/{name}": value for name, value in self._diagnose().items()})
        self._write(step, images_seen, entry)
        self.start_clock(images_seen)
        return entry

    def _write(self, step: int, images_seen: int, values: Mapping[str, Any]) -> None:
        """Append an entry to the log with the warnings that it brings, and say those."""
        warnings_of_entry = {}
        if self.accelerator.is_main_process:
            check_folder(self.config.output_dir)
            warnings_of_entry = self._watch.update({"step": step, "images_seen": images_seen, **values})
        self.log_file.write(step, images_seen, values, [{"warning": w, "rule": rule} for rule, w in warnings_of_entry.items()])
        for sentence in warnings_of_entry.values():
            tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)

    def _diagnose(self) -> dict[str, float]:
        """The objective's own measurements, on the main process; nothing they do reaches the training."""
        networks = self.objective.networks
        if type(self.objective).diagnose is Objective.diagnose:
            return {}
        if any(is_sharded(network) for network in networks.values()):
            networks = {name: share_weights(network) for name, network in networks.items()}  # of which every process has a part
        if not self.accelerator.is_main_process:
            return {}
        if self._diagnosis_batch is None:
            self._diagnosis_batch = self._draw_diagnosis_batch()
        device = self.accelerator.device
        # Eagerly: a graph compiled for training would be compiled anew for eval mode and for this batch.
        with undisturbed(networks, device), torch.compiler.set_stance("force_eager"), self.accelerator.autocast():
            values = self.objective.diagnose(networks, self._diagnosis_batch)
        return {name: float(value) for name, value in values.items()}

    def _draw_diagnosis_batch(self) -> Batch:
        """The first images of the first classes that have several; of any class where none has."""
        labels = self.dataset.labels
        classes = [int(label) for label, count in zip(*labels.unique(return_counts=True), strict=True) if count > 1]
        picked = [(labels == label).nonzero().flatten()[:DIAGNOSIS_IMAGES_PER_CLASS] for label in classes[:DIAGNOSIS_CLASSES]]
        indices = torch.cat(picked) if picked else torch.arange(min(len(labels), DIAGNOSIS_IMAGES_PER_CLASS))
        images = images_to_float(self.dataset.images(indices))  # (N, 3, H, W)
        device = self.accelerator.device
        return {"images": images.to(device), "class_labels": labels[indices].to(device)}

    def is_evaluation_due(self, step: int, images_seen: int) -> bool:
        """True at every ``evaluate_interval_steps``-th step, or where a multiple of ``evaluate_interval_images`` was passed."""
        steps, images = self.config.evaluate_interval_steps, self.config.evaluate_interval_images
        if images is not None:
            return step == 0 or images_seen // images > (images_seen - images_seen // step) // images
        return steps is not None and step % steps == 0

    def evaluate_if_due(self, step: int, images_seen: int, make_pipeline: Callable[[], ImagePipeline]) -> None:
        """Evaluate at every interval, step 0 included, and at the end, once each.

        Args:
            step: Steps done.
            images_seen: Training images seen.
            make_pipeline: Builds the pipeline to score.
        """
        is_due = step == self.total_steps or self.is_evaluation_due(step, images_seen)
        if self.evaluator is None or not is_due or step in self.log_file.evaluated_steps:
            return
        if self.evaluator.skipped is None:
            self._evaluate(self.evaluator, step, images_seen, make_pipeline())
        elif self.accelerator.is_main_process and not self.log_file.evaluated_steps:
            # Whoever looks for scores finds why there are none.
            content = {"step": step, "images_seen": images_seen, "scores": {}, "skipped": self.evaluator.skipped}
            write_json(self.config.output_dir / EVALUATION_FILE, content)

    def _evaluate(self, evaluator: Evaluator, step: int, images_seen: int, pipeline: ImagePipeline) -> None:
        from generative.core.pipeline_samples import SamplingStopped
        from metrics.metric import SmallSampleWarning

        is_shown = self.config.progress and sys.stderr.isatty()
        with warnings.catch_warnings():
            # What few samples do to a score shows in that of as many real images, which stands beside it.
            warnings.simplefilter("ignore", SmallSampleWarning)
            try:
                evaluation = evaluator.evaluate(pipeline, self.accelerator, self.objective.sampling_defaults(), is_shown)
            except SamplingStopped:
                self.is_interrupted = True
                return
            if self.accelerator.num_processes > 1:
                # To the last digit, as processes decide by them what to do next.
                evaluation = replace(evaluation, scores=gather_local(evaluation.scores)[0])
            if self._real_scores is None:
                self._real_scores = self._score_real(evaluator, evaluation.protocol)
        self.last_evaluation = evaluation
        if self.accelerator.is_main_process:
            check_folder(self.config.output_dir)
            write_json(
                self.config.output_dir / EVALUATION_FILE,
                {
                    "step": step,
                    "images_seen": images_seen,
                    "scores": evaluation.scores,
                    "real_scores": self._real_scores,
                    "protocol": evaluation.protocol,
                },
            )
        self._write(step, images_seen, {f"evaluation/{name}": value for name, value in evaluation.scores.items()})

    def _score_real(self, evaluator: Evaluator, protocol: Mapping[str, Any]) -> dict[str, float]:
        """Scores of as many real images: those that the run had under this protocol already, else computed by all processes."""
        known: dict[str, float] | None = None
        if self.accelerator.is_main_process:
            known = read_real_scores(self.config.output_dir, protocol)
        if self.accelerator.num_processes > 1:
            known = gather_local(known)[0]
        return evaluator.score_real(self.dataset, self.accelerator).scores if known is None else known

    def is_grid_due(self, step: int) -> bool:
        """True at every ``sample_interval_steps``-th step and at the end of the run."""
        interval = self.config.sample_interval_steps
        return step == self.total_steps or (interval is not None and step > 0 and step % interval == 0)

    def sample_grid(self, step: int, make_pipeline: Callable[[], ImagePipeline], only_if_missing: bool = False) -> None:
        """Write a grid of samples, one class to a row; the main process only."""
        pipeline = make_pipeline()  # on every process: standing statistics of cross-replica batch norm take all of them
        name = f"step-{step:08d}.png"
        is_there = (self.config.output_dir / SAMPLES_FOLDER / name).exists()
        if not self.accelerator.is_main_process or (only_if_missing and is_there):
            return
        classes = range(min(self.dataset.num_classes, MAX_GRID_CLASSES))
        columns = self.config.grid_images_per_class
        requests = [SampleRequest(label, index) for label in classes for index in range(columns)]
        images = self.objective.example_images(pipeline, requests, self._real_images(), self.seed, columns)
        # Of a method that has no use for labels the rows need not be classes.
        names = self._row_names() if self.objective.uses_labels else None
        log_image(self.accelerator, "samples", self._save_grid(images, name, names), step)

    def _save_grid(self, images: Tensor, name: str, row_names: list[str] | None) -> Image.Image:
        check_folder(self.config.output_dir)
        path = self.config.output_dir / SAMPLES_FOLDER / name
        return save_grid(images, path, self.config.grid_images_per_class, row_names=row_names)

    def _row_names(self) -> list[str] | None:
        """Names of the classes in the rows of a grid, as far as the grid's font has their letters, else their numbers."""
        if not self.dataset.has_class_names:
            return None
        names = self.dataset.class_names[:MAX_GRID_CLASSES]
        return [name if name.encode("latin-1", "replace").decode("latin-1") == name else str(i) for i, name in enumerate(names)]

    def _real_images(self) -> Tensor:
        """(N, 3, H, W) uint8 training images, a row for each class of the sample grids; black where a class has too few."""
        columns = self.config.grid_images_per_class
        rows = []
        for label in range(min(self.dataset.num_classes, MAX_GRID_CLASSES)):
            row = torch.zeros(columns, 3, self.dataset.image_size, self.dataset.image_size, dtype=torch.uint8)
            indices = (self.dataset.labels == label).nonzero().flatten()[:columns]
            if len(indices):
                row[: len(indices)] = self.dataset.images(indices)
            rows.append(row)
        return torch.cat(rows)


def saved_buffers(network: nn.Module) -> Iterator[Tensor]:
    """Floating-point buffers that go into a checkpoint; others, such as an attention mask, may hold infinities."""
    names = network.state_dict().keys()
    return (buffer for name, buffer in network.named_buffers() if name in names and buffer.is_floating_point())


@contextmanager
def undisturbed(networks: Networks, device: torch.device) -> Iterator[None]:
    """Inside, networks are in eval mode and gradients off; afterwards modes and torch's random numbers are as they were."""
    modes = [(module, module.training) for network in networks.values() for module in network.modules()]
    cuda = [device] if device.type == "cuda" else []
    try:
        for network in networks.values():
            network.eval()
        with torch.no_grad(), torch.random.fork_rng(cuda):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
