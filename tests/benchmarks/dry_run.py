"""What ``--dry-run`` tells against a run: images per second, and memory, of a small DiT on this machine.

    python tests/benchmarks/dry_run.py --steps 20

The time that a run should take at the machine's measured peak over the time that it takes is its MFU; memory is the growth of the
process's peak against the sum of the parts.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from generative.core.devices import measured_device
from generative.core.footprint import measure_footprint
from generative.core.gauges import memory_peak
from generative.core.types import Batch, StepContext
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective


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

    def build() -> DiffusionObjective:
        network = DiT(
            sample_size=16, in_channels=4, hidden_size=options.hidden_size, depth=options.depth, num_heads=6, num_classes=10
        )
        return DiffusionObjective(network, GaussianDiffusion(), lambda parameters: torch.optim.AdamW(parameters, lr=1e-4))

    told = measure_footprint(build(), batch)
    parts = told.weights * 2 + told.gradients + told.optimizer + told.activations.of(options.batch_size)
    data = batch(options.batch_size)
    before = memory_peak(torch.device("cpu"))
    objective = build()
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

    step(0)
    started = time.process_time()
    for number in range(1, options.steps + 1):
        step(number)
    rate = options.steps * options.batch_size / (time.process_time() - started)
    used = memory_peak(torch.device("cpu")) - before
    most = device.float_flops / told.step_flops
    print(f"peak {device.float_flops / 1e9:.0f} GFLOPS: at most {most:.1f} images/s")
    print(f"{rate:.1f} images/s of processor time: MFU {rate / most:.2f}")
    print(f"memory told {parts / 1e6:.0f} MB, grown by {used / 1e6:.0f} MB ({used / parts - 1:+.1%})")


if __name__ == "__main__":
    main()
