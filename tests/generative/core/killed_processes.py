"""Trains small runs in processes that end themselves, or each other, at a moment that a test chose.

A server: each line of standard input is a job as JSON (``Job``), each line of standard output how its processes ended. Processes
are forked, since imports take a hundred times as long as the training between two kills.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402
from killer import Kill, Killer  # noqa: E402

from generative.core import checkpoint as ckpt  # noqa: E402
from generative.core.ema import ConstantEMA, EMASpec, PowerEMA  # noqa: E402
from generative.core.errors import RunError  # noqa: E402
from generative.core.images import images_to_float  # noqa: E402
from generative.core.objective import Objective  # noqa: E402
from generative.core.processes import explain_lost_process, total  # noqa: E402
from generative.core.types import Batch, Losses, Networks, StepContext  # noqa: E402

SLOTS = 2
END_SECONDS = 60.0
"""In which the rest of a job must end once one of its processes is dead."""
JOB_SECONDS = 300.0
HUNG = -1000


@dataclasses.dataclass(frozen=True)
class Job:
    """A start of a run.

    Attributes:
        folder: What holds ``run`` and, of each process of each start, ``trained-START-RANK.jsonl`` and ``said-START-RANK.txt``.
        case: Of ``CASES``.
        start: Number of the start.
        port: A free one.
        num_processes: How many.
        kill: None to train to the end.
        settings: Of the trainer.
    """

    folder: str
    case: str
    start: int
    port: int
    num_processes: int
    kill: Kill | None
    settings: dict[str, Any]


# ---------------------------------------------------------------- what is trained


class Denoiser(toy.ToyDenoiser):
    """With two averages, and a buffer: dropout, noise and flips are there already. No batch norm, which sees single slots."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(toy.adam, batch_norm=False)
        self.ema = {"net": EMASpec("net", ConstantEMA(0.9)), "net-power": EMASpec("net", PowerEMA(std=0.1))}
        self.buffers = {"moving loss": torch.zeros(())}
        self._sum = torch.zeros(())

    def phases(self) -> list[Any]:
        return [dataclasses.replace(phase, after_step=self.keep_loss) for phase in super().phases()]

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        losses = super().loss(networks, batch, context)
        self._sum = self._sum + losses["loss"].detach()
        return losses

    def keep_loss(self, networks: Networks, step: int) -> None:
        self.buffers["moving loss"].lerp_(total(self._sum), 0.1)
        self._sum = torch.zeros(())


def gan() -> toy.ToyGAN:
    """Two networks, the first of which takes two batches of fresh data a step."""
    return toy.gan(toy.adam, random_noise=True, discriminator_steps=2, ema=ConstantEMA(0.9))


def scored() -> dict[str, Any]:
    """Settings of a run whose checkpoint of the best score is kept."""
    evaluator = toy.evaluator(metrics=("frechet",))
    return {"evaluator": evaluator, "evaluate_interval_steps": 4, "keep_best": "frechet_distance"}


CASES: dict[str, tuple[Callable[[], Objective], str, Callable[[], dict[str, Any]]]] = {
    "denoiser": (Denoiser, "loss", lambda: {"ema_snapshot_interval_images": 80}),
    "gan": (gan, "discriminator_loss", dict),
    "scored": (Denoiser, "loss", scored),
}
"""The objective, its loss that sees all of the data, and settings."""


class Record:
    """Writes down which images each step was given, by what is in them.

    Args:
        path: Where to.
        dataset: The images.
        at_step: Called with the number of each step of this process as it begins.
    """

    def __init__(self, path: Path, dataset: toy.ToyImages, at_step: Callable[[int], None]) -> None:
        self._file = path.open("a")
        pixels = images_to_float(dataset.pixels)
        self._known = {key(image): [index, False] for index, image in enumerate(pixels)}
        self._known |= {key(image): [index, True] for index, image in enumerate(pixels.flip(-1))}
        self._at_step = at_step
        self._step, self._num_steps = -1, 0

    def watch(self, objective: Objective, loss: str) -> None:
        """See what a loss is given."""
        inner = getattr(objective, loss)

        def watched(networks: Networks, batch: Batch, context: StepContext) -> Losses:
            if context.step != self._step:
                self._step = context.step
                self._at_step(self._num_steps)
                self._num_steps += 1
            images = [self._known[key(image)] for image in batch["images"]]
            self._file.write(json.dumps({"step": context.step, "images": images}) + "\n")
            self._file.flush()  # all of it, or this process dies on the way
            return inner(networks, batch, context)

        setattr(objective, loss, watched)


def key(image: Tensor) -> bytes:
    """The content of an image."""
    return image.contiguous().numpy().tobytes()


# ---------------------------------------------------------------- processes


def train(job: Job, rank: int) -> int:
    """Be one process of a job; returns its exit code."""
    if job.num_processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.num_processes, "MASTER_PORT": job.port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    folder, run = Path(job.folder), Path(job.folder) / "run"
    os.fsync = lambda descriptor: None  # slow, and no change that another process sees
    killer = Killer(job.kill, run) if job.kill is not None and job.kill.rank == rank else None
    make, loss, settings = CASES[job.case]
    dataset = toy.ToyImages(num_images=26)
    record = Record(folder / f"trained-{job.start}-{rank}.jsonl", dataset, killer.at_step if killer else lambda number: None)
    try:
        objective = make()
        record.watch(objective, loss)
        trainer = toy.build_trainer(
            objective,
            run,
            dataset=dataset,
            gradient_accumulation_steps=SLOTS // job.num_processes,
            horizontal_flip=True,
            **{**settings(), **job.settings},
        )
        trainer.fit(ckpt.resolve_checkpoint(run, "auto"))
    except RuntimeError as error:
        stopped = error if isinstance(error, RunError) else explain_lost_process(error)
        if stopped is None:
            raise
        print(f"error: {stopped}", file=sys.stderr)
        return 1
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def fork(job: Job) -> list[int]:
    """Start the processes of a job, in a group of their own; returns their numbers."""
    pids: list[int] = []
    for rank in range(job.num_processes):
        pid = os.fork()
        group = pids[0] if pids else pid
        os.setpgid(pid, group)  # in both, whichever comes first
        if pid == 0:
            said = os.open(Path(job.folder) / f"said-{job.start}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            code = 3
            try:
                code = train(job, rank)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def wait(pids: list[int]) -> list[list[float]]:
    """Wait for processes; returns of each its exit code, ``HUNG`` if it had to be killed, and its seconds after the first one."""
    ends: dict[int, tuple[int, float]] = {}
    began = time.monotonic()
    is_late = False
    while len(ends) < len(pids):
        now = time.monotonic()
        first = min((moment for _, moment in ends.values()), default=now)
        for pid in set(pids) - ends.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[pid] = (HUNG if is_late else os.waitstatus_to_exitcode(status), now)
        if not is_late and (now - first > END_SECONDS or now - began > JOB_SECONDS):
            is_late = True
            os.killpg(pids[0], signal.SIGKILL)
        time.sleep(0.005)
    first = min(moment for _, moment in ends.values())
    return [[code, moment - first] for code, moment in (ends[pid] for pid in pids)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        content = json.loads(line)
        if content["kill"] is not None:
            content["kill"] = Kill(**content["kill"])
        print(json.dumps(wait(fork(Job(**content)))), flush=True)
