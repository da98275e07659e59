"""Images per second of training and sampling on the CPU: ours against the official VAR, LlamaGen and MAR, same sizes and weights.

    python tests/benchmarks/token_training.py var --rival /path/to/VAR                 # tiny, then mid-size; some minutes
    python tests/benchmarks/token_training.py llamagen --rival /path/to/LlamaGen --size tiny
    python tests/benchmarks/token_training.py mar --rival /path/to/mar --compile

A step is forward, backward, clipping and AdamW (and MAR's moving average) on cached tokens or latents: the rival's own forward in
the loop of its own script (``rival_*.py`` say what is patched), our trainer's ``train_step``. Sampling is guided, from labels to
images for VAR, to token ids for LlamaGen and to latents for MAR (whose decoders are not part of the contest). First both get the
same weights and must give the same loss, gradients and greedy samples (MAR: the vectors that its head is conditioned on). Then
each contender runs in a process of its own and all take turns; see ``gan_training.py`` for how the table is made. Every row is
credited with the operations of the official program, so that the share of the peak is of useful work.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest import Contender, contest
from token_task import SIZES, TokenTask
from torch import Tensor, nn

from generative.core.types import StepContext

TOLERANCE = 1e-3
"""Relative, of losses, gradient norms, samples and conditions."""


def contenders(with_compile: bool) -> list[Contender]:
    """The rows of the table, the one that all are compared with first."""
    rows = [
        Contender("rival float32", False),
        Contender("ours float32", True, keep_memory=True),
        Contender("ours bf16", True, "bf16", keep_memory=True),
    ]
    if with_compile:
        rows.append(Contender("ours float32, compiled", True, compile=True, keep_memory=True))
        rows.append(Contender("ours bf16, compiled", True, "bf16", compile=True, keep_memory=True))
    return rows


def gradient_norm(network: nn.Module) -> Tensor:
    """L2 norm of all gradients."""
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def without_dropout(network: nn.Module) -> None:
    """Set every dropout to 0, so that both sides compute the same."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "drop_path"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def compared_values(task: TokenTask, rival: Any, ours: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """What both sides compute, the rival's first."""
    objective, batch = ours.objective, task.batch()
    if task.model == "mar":
        network = objective.networks["network"].eval()
        masked = torch.arange(network.num_tokens).expand(task.batch_size, -1) % 4 != 0
        with torch.no_grad():
            mine = network(network.patchify(batch["latents"]), masked, batch["class_labels"])
        theirs = rival.conditions(masked.float())
        return {"conditions of the head": (theirs[masked], mine[masked] if mine.shape == theirs.shape else mine.flatten(0, -2))}
    network = objective.networks["transformer"]
    values: dict[str, tuple[Tensor, Tensor]] = {}
    rival.network.train()
    network.train()
    without_dropout(rival.network)
    without_dropout(network)
    objective.label_dropout = 0.0
    loss = objective.loss(objective.networks, batch, StepContext(0, 0, torch.Generator()))["loss"]
    expected = rival.loss(is_check=True)
    loss.backward()
    expected.backward()
    values["loss"] = (expected.detach(), loss.detach())
    values["gradient"] = (gradient_norm(rival.network), gradient_norm(network))
    greedy = ours.sample(top_k=1)
    theirs = rival.sample(is_greedy=True).float()
    if task.model == "llamagen":  # ids came back as an image, scaled to [0, 1] from [-1, 1]
        greedy = (greedy[:, 0] * 2 - 1).flatten(1)
        theirs = theirs.clamp(-1, 1)
    values["greedy samples"] = (theirs, greedy)
    return values


def check_agreement(task: TokenTask) -> None:
    """Both compute the same, or there is nothing to compare; writes the weights that all start from.

    Raises:
        SystemExit: If they do not.
    """
    torch.manual_seed(0)
    rival = task.rival()
    torch.save(rival.state(), task.folder / "state.pt")
    ours = task.ours(Contender("check", True))
    for name, (expected, mine) in compared_values(task, rival, ours).items():
        difference = ((mine - expected).abs().max() / expected.abs().max()).item()
        print(f"  {name}: relative difference {difference:.1e}, allowed {TOLERANCE:.0e}")
        if not difference <= TOLERANCE:
            raise SystemExit(f"ours and the rival do not compute the same {name}")


def compare(task: TokenTask, rows: Sequence[Contender], turns: int) -> None:
    """Check, then run all contenders of one size."""
    print(f"\n{task.model}, {task.size}, batch {task.batch_size}, {task.threads} threads")
    check_agreement(task)
    contest(task, rows, turns, count_ours=False)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SIZES))
    parser.add_argument("--rival", type=Path, required=True, metavar="FOLDER", help="a checkout of the official repository")
    parser.add_argument("--size", choices=["tiny", "mid"], help="one of the sizes (default: both)")
    parser.add_argument("--turns", type=int, default=5, help="steps of each contender that count (default: 5)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="1: processor time (default: as many as torch takes)"
    )
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in [args.size] if args.size else list(SIZES[args.model]):
        with tempfile.TemporaryDirectory(prefix="token-training-") as folder:
            task = TokenTask(args.model, size, args.threads, args.rival.resolve(), Path(folder))
            compare(task, contenders(args.compile), args.turns)


if __name__ == "__main__":
    main()
