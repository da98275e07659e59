"""Tokens per second of training FiTv2 on images of several sizes: packed rows against padded sequences, on the CPU.

    python tests/benchmarks/packed_training.py                     # float32 and bfloat16
    python tests/benchmarks/packed_training.py --rival /path/to/FiT  # the official network beside them, padded as it trains

A step is forward and backward of the loss over each image's own tokens. Only real tokens count. Three kinds of batches: sides
drawn evenly in 4 to 16 tokens, as images of all resolutions up to the budget have; the budget at aspect ratios of photographs;
squares that fill it. Contenders take turns; times are of the process, so that other programs on the machine hardly count. The
official code needs einops, timm and torchdiffeq.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.data.aspect import fit_size
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.objectives.any_size import masked_losses
from generative.layers.packing import pack_rows, valid_tokens

CONTEXT = 256
CONFIG: dict[str, Any] = {
    "context_size": CONTEXT, "hidden_size": 384, "depth": 6, "num_heads": 6, "num_classes": 1000, "learn_sigma": False,
    "use_sit": True, "use_swiglu": True, "q_norm": "layernorm", "k_norm": "layernorm", "adaln_type": "lora", "adaln_lora_dim": 96,
}  # fmt: skip
RATIOS = (4 / 3, 3 / 4, 3 / 2, 2 / 3, 1.0, 16 / 9)


def sizes_of(kind: str, count: int) -> Tensor:
    """(B, 2) heights and widths in tokens."""
    generator = torch.Generator().manual_seed(0)
    if kind == "squares":
        return torch.full((count, 2), 16)
    if kind == "resolutions":
        return torch.randint(4, 17, (count, 2), generator=generator)
    ratios = [RATIOS[index % len(RATIOS)] for index in range(count)]
    found = [fit_size(round(1000 * ratio), 1000, 16, CONTEXT) for ratio in ratios]
    return torch.tensor([[rows, columns] for columns, rows in found])


def our_steps(network: Any, sizes: Tensor, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """Padded and packed steps of our network."""
    process = Interpolant(data_time=1)
    start, noise = torch.randn(2, len(sizes), 4, CONTEXT, 4, generator=torch.Generator().manual_seed(1))
    times, labels = torch.rand(len(sizes)), torch.arange(len(sizes))
    sample = process.add_noise(start, noise, times)

    def step(packing: Tensor | None) -> None:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = network(sample, times, labels, sizes=sizes, packing=packing).float()
        masked_losses(process, output, start, noise, sample, times, sizes)["mse"].mean().backward()

    places = pack_rows(sizes, CONTEXT, CONTEXT)
    return {"padded": lambda: step(None), "packed": lambda: step(places)}


def rival_network(checkout: Path, depth: int) -> torch.nn.Module:
    """The official network; of its repository a module is missing whose one function it imports and never calls."""
    sys.path.insert(0, str(checkout))
    missing = ModuleType("fit.model.sincos")
    missing.get_2d_sincos_pos_embed_from_grid = None  # type: ignore[attr-defined]
    sys.modules["fit.model.sincos"] = missing
    from fit.model.fit_model import FiT as Official  # type: ignore[import-not-found]

    network: torch.nn.Module = Official(**(CONFIG | {"depth": depth}))
    return network


def rival_step(network: torch.nn.Module, sizes: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """A padded step of the official network with its loss."""
    mask = valid_tokens(sizes, CONTEXT)
    places = torch.arange(CONTEXT) * mask
    grid = torch.stack([places % sizes[:, 1:], places // sizes[:, 1:]], dim=1)
    start, noise = torch.randn(2, len(sizes), CONTEXT, 16, generator=torch.Generator().manual_seed(1))
    times, labels, shares = torch.rand(len(sizes)), torch.arange(len(sizes)), mask.float().mean(1)
    sample = times[:, None, None] * start + (1 - times)[:, None, None] * noise

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = network(sample, times, labels, grid, mask.float(), sizes[:, None])
        errors = ((output.float() - (start - noise)) * mask[..., None]).square().flatten(1).mean(1)
        (errors / shares).mean().backward()

    return step


def main() -> None:
    """Print a table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", type=Path, metavar="FOLDER", help="a checkout of whlzy/FiT")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--depth", type=int, default=6, help="blocks (default 6)")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = get_source("fitv2")
    network = source.build(CONFIG | {"depth": arguments.depth})["model"].train()
    rival = None if arguments.rival is None else rival_network(arguments.rival, arguments.depth).train()
    if rival is not None:
        load_official(source, {"model": network}, dict(rival.state_dict()))
    for dtype in (torch.bfloat16, torch.float32):
        for kind in ("resolutions", "photographs", "squares"):
            sizes = sizes_of(kind, arguments.batch_size)
            tokens = int(sizes.prod(1).sum())
            steps = our_steps(network, sizes, dtype)
            if rival is not None:
                steps = {"official, padded": rival_step(rival, sizes, dtype), **steps}
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(arguments.turns + 1):
                for name, step in steps.items():
                    begin = time.process_time()
                    step()
                    if turn:
                        seconds[name].append(time.process_time() - begin)
            print(
                f"{str(dtype).removeprefix('torch.')}, {kind}: {tokens / CONTEXT / len(sizes):.0%} of {CONTEXT} places are tokens"
            )
            for name, times in seconds.items():
                print(f"  {name:16} {tokens / statistics.median(times):8.0f} tokens/s")


if __name__ == "__main__":
    main()
