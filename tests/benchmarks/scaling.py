"""Images per second of training a DiT on two processes against one, each with one thread; whole and cut over them (FSDP2).

    python tests/benchmarks/scaling.py                      # DiT of 6 blocks of width 256, 32 images a process and step
    python tests/benchmarks/scaling.py --processes 4 --steps 20

Every process has the same images per step, so two do twice the work of one: the aim is 1.8 times its images per second.
Contenders take turns, each in processes of its own, and each row is the median of its turns. It needs a core a process that
nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch


def measure(arguments: argparse.Namespace) -> None:
    """Train on this process, one of a launcher's; the first prints images per second over all of them."""
    from generative.core.runtime import build_accelerator
    from generative.core.trainer import Trainer
    from generative.core.trainer_config import TrainerConfig
    from generative.data.digits import DigitsDataset
    from generative.diffusion.formulations.interpolant import Interpolant
    from generative.diffusion.networks.dit import DiT
    from generative.diffusion.objectives.denoising import DiffusionObjective

    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = int(os.environ["WORLD_SIZE"])
    denoiser = DiT(8, 1, 3, hidden_size=arguments.width, depth=arguments.depth, num_heads=4, num_classes=10)
    objective = DiffusionObjective(denoiser, Interpolant(), partial(torch.optim.AdamW, lr=1e-4, fused=True))
    dataset = DigitsDataset(split="train", image_size=8)
    batch_size = arguments.batch_size * count
    with tempfile.TemporaryDirectory() as folder:
        config = TrainerConfig(output_dir=Path(folder), total_images=10**9, batch_size=batch_size, shard=arguments.shard)
        trainer = Trainer(objective, dataset, config, build_accelerator())
        images = torch.rand(arguments.batch_size, 3, 8, 8) * 2 - 1
        step = [[{"images": images, "class_labels": torch.arange(arguments.batch_size) % 10}]]
        for _ in range(2):
            trainer.train_step(step)  # type: ignore[arg-type]
        trainer.accelerator.wait_for_everyone()
        began = time.perf_counter()
        for _ in range(arguments.steps):
            trainer.train_step(step)  # type: ignore[arg-type]
        trainer.accelerator.wait_for_everyone()
        seconds = time.perf_counter() - began
    if trainer.accelerator.is_main_process:
        print(json.dumps(arguments.steps * batch_size / seconds))
    if count > 1:
        torch.distributed.destroy_process_group()


def run(shard: str, processes: int, arguments: argparse.Namespace) -> float:
    """Images per second of one contender in one turn."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    names = ("width", "depth", "batch_size", "steps")
    options = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    command = [sys.executable, "-W", "ignore", *launcher, __file__, "--shard", shard, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(result.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Measure all contenders and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="how many against one")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32, help="images a process and step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shard is not None:
        measure(arguments)
        return
    contenders = [("none", 1), ("none", arguments.processes), ("full", arguments.processes)]
    rates: dict[tuple[str, int], list[float]] = {contender: [] for contender in contenders}
    for _ in range(arguments.turns):
        for contender in contenders:
            rates[contender].append(run(*contender, arguments))
    one = statistics.median(rates[contenders[0]])
    print(f"{'shard':8}{'processes':>10}{'images/s':>10}{'ratio':>8}")
    for shard, processes in contenders:
        rate = statistics.median(rates[shard, processes])
        print(f"{shard:8}{processes:>10}{rate:>10.1f}{rate / one:>8.2f}")


if __name__ == "__main__":
    main()
