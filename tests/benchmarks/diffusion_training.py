"""Images per second of training and sampling on CPU: ours against the official codes and diffusers.

    python tests/benchmarks/diffusion_training.py dit --rival /path/to/DiT               # tiny, then mid-size; some minutes
    python tests/benchmarks/diffusion_training.py adm --rival /path/to/guided-diffusion --size tiny
    python tests/benchmarks/diffusion_training.py edm2 --rival /path/to/edm2 --compile
    python tests/benchmarks/diffusion_training.py u-vit --rival /path/to/U-ViT           # DiMR as dimr; both need einops
    python tests/benchmarks/diffusion_training.py rin --rival /path/to/pix2seq           # needs TensorFlow, see rival_rin.py
    python tests/benchmarks/diffusion_training.py dit-pipeline            # diffusers' DiTPipeline, which is installed

A step is forward, backward, AdamW (EDM2: Adam) and a moving average: the rival's own losses in the loop of its own script
(``rival_*.py`` say what is left out), our trainer's ``train_step``. Sampling takes 10 steps from labels to pixels, guided where
the official script guides: 10 ancestral steps of DiT's and ADM's chain, of SiT's SDE, of EDM's second order, of DDIM, 10
evaluations of U-ViT's and DiMR's DPM-Solver, 10 steps of RIN's DDPM. First both
get the same weights and must predict the same. Then each contender runs in a process of its own and all take turns; see
``gan_training.py`` for how the table is made. Every row is credited with the operations of the official program, so that the
share of the peak is of useful work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from contest import Contender, contest
from diffusion_task import SIZES, DiffusionTask
from torch import Tensor

TOLERANCE = 1e-3
"""Relative, of predictions."""
CONVOLUTIONAL = ("adm", "edm2")  # DiMR lays its convolutions out by itself


def contenders(model: str, with_compile: bool) -> list[Contender]:
    """The rows of the table, the one that all are compared with first."""
    last = model in CONVOLUTIONAL
    rows = [
        Contender("rival float32", False),
        Contender("ours float32", True, channels_last=last, keep_memory=True),
        Contender("ours bf16", True, "bf16", channels_last=last, keep_memory=True),
    ]
    if with_compile:
        rows.append(Contender("ours float32, compiled", True, channels_last=last, compile=True, keep_memory=True))
    return rows


def question(task: DiffusionTask) -> tuple[Tensor, Tensor, Tensor]:
    """Images, times and labels that both are asked about."""
    batch = task.batch()
    # Times that every formulation has; SiT's and RIN's are shares.
    time = 0.25 if task.model in ("sit", "rin") else 3.0 if task.model == "edm2" else 300
    return batch["images"], torch.full((task.batch_size,), time), batch["class_labels"]


def official_answer(task: DiffusionTask) -> Tensor:
    """What the rival predicts; writes the weights that all start from."""
    torch.manual_seed(0)
    rival = task.rival()
    torch.save(rival.network.state_dict(), task.folder / "state.pt")
    answer: Tensor = rival.predict(*question(task))
    return answer.detach()


def check_agreement(task: DiffusionTask) -> None:
    """Both predict the same, or there is nothing to compare.

    Raises:
        SystemExit: If they do not.
    """
    # In a process of its own, as TensorFlow and torch's compiler do not bear each other.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        expected = pool.submit(official_answer, task).result()
    mine = task.ours(Contender("check", True)).predict(*question(task))
    difference = ((mine - expected).abs().max() / expected.abs().max()).item()
    print(f"  prediction: relative difference {difference:.1e}, allowed {TOLERANCE:.0e}")
    if not difference <= TOLERANCE:
        raise SystemExit("ours and the rival do not predict the same")


def compare(task: DiffusionTask, rows: Sequence[Contender], turns: int) -> None:
    """Check, then run all contenders of one size."""
    print(f"\n{task.model}, {task.size}, batch {task.batch_size}, {task.threads} threads")
    check_agreement(task)
    contest(task, rows, turns, count_ours=task.model == "rin")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SIZES))
    parser.add_argument("--rival", type=Path, metavar="FOLDER", help="a checkout of the official repository (not of diffusers)")
    parser.add_argument("--size", choices=["tiny", "mid"], help="one of the sizes (default: both)")
    parser.add_argument("--turns", type=int, default=5, help="steps of each contender that count (default: 5)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="1: processor time (default: as many as torch takes)"
    )
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    if args.rival is None and args.model != "dit-pipeline":
        parser.error(f"--rival is needed for {args.model}: a checkout of its repository")
    torch.set_num_threads(args.threads)
    for size in [args.size] if args.size else list(SIZES[args.model]):
        with tempfile.TemporaryDirectory(prefix="diffusion-training-") as folder:
            checkout = args.rival.resolve() if args.rival else None
            task = DiffusionTask(args.model, size, args.threads, checkout, Path(folder))
            compare(task, contenders(args.model, args.compile), args.turns)


if __name__ == "__main__":
    main()
