"""What ``--dry-run`` tells against a run: images per second, and memory, of a small DiT on this machine.

    python tests/benchmarks/dry_run.py --steps 20

The time that a run should take at the machine's measured peak over the time that it takes is its MFU. Memory told is the sum of
the parts; it is compared with the most bytes that torch's allocator held at once, which is what an accelerator counts, and with
the growth of the process's peak, to which the C library adds what it keeps of freed blocks.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from generative.core.devices import measured_device
from generative.core.footprint import measure_footprint, size_of
from generative.core.gauges import memory_peak
from generative.core.types import Batch, StepContext
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective


def training(objective: DiffusionObjective, data: Batch) -> Callable[[int], None]:
    """A step of training with an average, by its number."""
    network = objective.networks["denoiser"]
    average = copy.deepcopy(network)
    optimizer = objective.optimizers["denoiser"](network.parameters())

    def step(number: int) -> None:
        optimizer.zero_grad()
        context = StepContext(number, 0, torch.Generator().manual_seed(number))
        objective.loss(objective.networks, data, context)["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1e-4)

    return step


def most_allocated(step: Callable[[], None]) -> int:
    """Most bytes that torch held at once in a step, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(itertools.accumulate(changes), default=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--depth", type=int, default=6)
    options = parser.parse_args()
    device = measured_device()

    def batch(size: int) -> Batch:
        return {"images": torch.zeros(size, 4, 16, 16), "class_labels": torch.zeros(size, dtype=torch.int64)}

    def build(hidden_size: int, depth: int) -> DiffusionObjective:
        network = DiT(sample_size=16, in_channels=4, hidden_size=hidden_size, depth=depth, num_heads=6, num_classes=10)
        return DiffusionObjective(network, GaussianDiffusion(), lambda parameters: torch.optim.AdamW(parameters, lr=1e-4))

    told = measure_footprint(build(options.hidden_size, options.depth), batch)
    parts = told.weights * 2 + told.gradients + told.optimizer + told.activations.of(options.batch_size)
    # What the first step of any training loads (kernels, the compiler's front that optimizers import) is no part of this one.
    training(build(12, 1), batch(1))(0)
    data = batch(options.batch_size)
    before = memory_peak(torch.device("cpu"))
    step = training(build(options.hidden_size, options.depth), data)
    step(0)
    started = time.process_time()
    for number in range(1, options.steps + 1):
        step(number)
    rate = options.steps * options.batch_size / (time.process_time() - started)
    used = memory_peak(torch.device("cpu")) - before
    allocated = most_allocated(lambda: step(options.steps + 1))
    held = told.weights * 2 + told.optimizer + size_of([data["images"], data["class_labels"]])
    most = device.float_flops / told.step_flops
    print(f"peak {device.float_flops / 1e9:.0f} GFLOPS: at most {most:.1f} images/s")
    print(f"{rate:.1f} images/s of processor time: MFU {rate / most:.2f}")
    print(f"memory told {parts / 1e6:.0f} MB")
    for what, found in {"allocated": allocated + held, "process grown": used}.items():
        print(f"  {what} {found / 1e6:.0f} MB: told is {parts / found - 1:+.1%} off")


if __name__ == "__main__":
    main()
