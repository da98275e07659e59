"""How many of our files a task passes through, and how often it moves from one to another: what a reader has to follow.

    python tests/benchmarks/traversal.py [--files] [TASK ...]
    PYTHONPATH=/another/checkout python tests/benchmarks/traversal.py

Of a training step (the third: the first ones look things up) on digits of a DiT, a SAGAN and a VAR; and of a PNG that `generative
sample` draws from that SAGAN, and an FID of two folders, from start to end. A file counts when one of its functions is called, a
move when a function of ours is called and the last one called was in another file. Bodies of modules and classes do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

STEPS = {"dit": "digits/dit", "gan": "digits/sagan", "var": "digits/var"}
TASKS = ("dit", "gan", "var", "png", "fid")
TRACED_STEP = 2
IMAGE_SIZE = 64
NUM_IMAGES = 4


class Trace:
    """Counts of calls by file of ours, and of moves from one to another."""

    def __init__(self) -> None:
        import generative

        self.root = Path(generative.__file__).resolve().parents[1]
        self._packages = tuple(f"{self.root / name}{os.sep}" for name in ("generative", "metrics", "pipelines"))
        self.files: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self._last: str | None = None

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Count what is called in this thread."""
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        here = frame.f_code.co_filename
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor a class
        if event != "call" or not is_function or not here.startswith(self._packages):
            return
        self.files[here] += 1
        if self._last not in (None, here):
            self.moves[str(self._last), here] += 1
        self._last = here

    def describe(self, name: str, files: bool) -> str:
        """One line for the task; with ``files``, a line for each file and each move too."""
        lines = [f"{name:<5} {len(self.files):>6} {sum(self.moves.values()):>6}"]
        if files:
            short = {path: str(Path(path).relative_to(self.root)) for path in self.files}
            lines += [f"    {count:>6} {short[path]}" for path, count in self.files.most_common()]
            lines += [f"    {count:>6} {short.get(a, a)} -> {short.get(b, b)}" for (a, b), count in self.moves.most_common()]
        return "\n".join(lines)


def train(config: str, output_dir: str, trace: Trace | None = None) -> None:
    """Train a few steps in the current folder; count the third."""
    from generative.cli.main import main
    from generative.core.trainer import Trainer

    whole = Trainer.train_step

    def train_step(trainer: Any, *args: Any) -> None:
        with trace.on() if trace is not None and trainer.step == TRACED_STEP else contextlib.nullcontext():
            whole(trainer, *args)

    options = {"batch_size": "16", "total_images": "128", "output_dir": output_dir}
    options |= {"evaluate_interval_steps": "null", "sample_interval_steps": "null"}
    overrides = [part for name, value in options.items() for part in (f"--trainer.{name}", value)]
    Trainer.train_step = train_step  # type: ignore
    try:
        succeed(main(["train", config, "--evaluation", "null", *overrides]))
    finally:
        Trainer.train_step = whole  # type: ignore


def sample(trace: Trace) -> None:
    """Sample one image of a small network into a PNG."""
    subprocess.run([sys.executable, __file__, "--train", "digits/sagan"], check=True, capture_output=True)
    from generative.cli.main import main

    with trace.on():
        succeed(main(["sample", "run", "--class-labels", "3", "--num-images-per-class", "1", "--output", "samples"]))


def score(trace: Trace) -> None:
    """FID of two folders of noise, by Inception-v3 with seeded weights."""
    import numpy as np
    from PIL import Image
    from seeded_weights import write_seeded_weights

    from metrics.cli import main

    generator = np.random.default_rng(0)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        for number in range(NUM_IMAGES):
            pixels = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{number}.png")
    weights = write_seeded_weights(Path("inception.pth"))
    with trace.on():
        succeed(main(["a", "b", "--weights", str(weights), "--device", "cpu"]))


def succeed(code: Any) -> None:
    """Stop if a command failed."""
    if code:
        raise SystemExit(f"the command failed with {code}")


def measure(task: str, files: bool) -> None:
    """Run one task in this process and print its line."""
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["TRIPTYCH_CACHE"] = folder
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            if task == "var":
                train("digits/multi_scale_vq", "runs/digits-multi-scale-vq")
            if task in STEPS:
                train(STEPS[task], "run", trace)
            elif task == "png":
                sample(trace)
            else:
                score(trace)
    print(trace.describe(task, files), flush=True)


def main() -> None:
    """Measure each task in a process of its own, so that none finds what another has loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all of them if none is named")
    parser.add_argument("--files", action="store_true", help="list the files and the moves too")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train, "run")
        return
    if args.here:
        measure(args.tasks[0], args.files)
        return
    print("task   files  moves")
    for task in args.tasks or TASKS:
        command = [sys.executable, __file__, task, "--here", *(["--files"] if args.files else [])]
        result = subprocess.run(command, capture_output=True, text=True)
        print(result.stdout if result.returncode == 0 else f"{task}: {result.stderr[-2000:]}", end="")


if __name__ == "__main__":
    main()
