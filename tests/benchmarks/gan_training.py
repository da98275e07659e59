"""Images per second of GAN training and sampling on the CPU: ours against BigGAN-PyTorch, same sizes, weights and loss.

    python tests/benchmarks/gan_training.py --rival /path/to/BigGAN-PyTorch           # 32 and 64 px; about 4 minutes on two cores
    python tests/benchmarks/gan_training.py --rival ... --resolution 128 --batch 8    # one size
    python tests/benchmarks/gan_training.py --rival ... --model biggan --compile      # with torch.compile: minutes more

A step is one of the discriminator and one of the generator with Adam and the moving average: the rival's own
``GAN_training_function`` (``rival_gan.py`` says what is patched), our trainer's ``train_step``. First both get the same weights
and noise, and must give the same images, losses and gradients. Then each contender runs in a process of its own, so that peak
memory and allocator are its own, and all take turns, step by step, so that a machine that slows down slows all of them. Printed
are medians; the ratio is the median over turns of the rival's float32 time over the contender's in the same turn.

GFLOP is what convolutions and matrix products really compute, by torch's counter (ours fuses resampling into convolutions, so it
computes less); the share is of the fastest convolution or matrix product measured here in that precision. MiB is the peak of the
process' resident memory so far; the line above the tables says how much of it Python and its libraries take.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from contest import Contender, contest
from gan_task import GANTask
from our_gan import build_networks, build_objective
from rival_gan import ATTENTION, RivalGAN
from torch import Tensor, nn

from generative.core.types import StepContext

SIZES = ((32, 32, 32), (64, 32, 16))
"""Resolution, channel multiplier and batch of a run without options."""

REFERENCE_ROWS = (1, 3)
"""The rival and ours in float32: always run, as times are compared with the one and operations are counted on both."""

IMAGE_TOLERANCE = 1e-4
"""Of images in [-1, 1], as the parity tests have it."""

LOSS_TOLERANCE = 1e-3
"""Relative, of losses and of gradient norms, as the parity tests have it for gradients."""


def contenders(with_compile: bool, keep_memory: bool) -> list[Contender]:
    """The rows of the table, the one that all are compared with first."""
    rows = [
        Contender("rival float32", False),
        Contender("rival float32, channels_last", False, channels_last=True),
        Contender("ours float32", True, keep_memory=keep_memory),
        Contender("ours float32, channels_last", True, channels_last=True, keep_memory=keep_memory),
        Contender("ours bf16, channels_last", True, "bf16", True, keep_memory=keep_memory),
    ]
    if with_compile:
        rows.append(Contender("ours float32, compiled", True, compile=True, keep_memory=keep_memory))
        rows.append(Contender("ours bf16, compiled", True, "bf16", True, True, keep_memory=keep_memory))
    return rows


def gradient_norm(network: nn.Module) -> Tensor:
    """L2 norm of all gradients, which are then dropped."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    network.zero_grad(set_to_none=True)
    return norm


def rival_values(rival: RivalGAN, inputs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Images in eval mode, then losses and gradient norms of one step's two halves in train mode."""
    generator, losses = rival.generator, rival.modules.losses
    (z, y), (z2, y2) = inputs
    with torch.no_grad():
        values = {"images": generator.eval()(z, generator.shared(y))}
    generator.train()
    fake_logits, real_logits = rival.both(z, y, rival.images, rival.labels, train_G=False)
    loss = sum(losses.discriminator_loss(fake_logits, real_logits))
    loss.backward()
    values |= {"discriminator loss": loss.detach(), "discriminator gradient": gradient_norm(rival.discriminator)}
    loss = losses.generator_loss(rival.both(z2, y2, train_G=True))
    loss.backward()
    return values | {"generator loss": loss.detach(), "generator gradient": gradient_norm(generator)}


def check_agreement(task: GANTask) -> None:
    """Both compute the same, or there is nothing to compare; writes the weights that all start from.

    Raises:
        SystemExit: If they do not.
    """
    images, labels = task.batch()
    torch.manual_seed(0)
    rival = RivalGAN(task.checkout, task.model, task.resolution, task.channels, images, labels, channels_last=False)
    state = {"generator": rival.generator.state_dict(), "discriminator": rival.discriminator.state_dict()}
    torch.save(state, task.folder / "state.pt")
    networks = build_networks(task.model, task.resolution, task.channels, torch.load(task.folder / "state.pt", weights_only=True))
    objective = build_objective(task.model, networks)
    inputs = [objective.draw_inputs(len(images), torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    theirs = rival_values(rival, inputs)
    with torch.no_grad():
        ours = {"images": networks["generator"].eval()(*inputs[0])}
    batch = {"images": images, "class_labels": labels}
    for network in networks.values():
        network.train()
    for seed, (name, loss_fn) in enumerate(
        (("discriminator", objective.discriminator_loss), ("generator", objective.generator_loss))
    ):
        loss = loss_fn(networks, batch, StepContext(0, 0, torch.Generator().manual_seed(seed)))["loss"]  # type: ignore[arg-type]
        loss.backward()
        ours |= {f"{name} loss": loss.detach(), f"{name} gradient": gradient_norm(networks[name])}
    for name, expected in theirs.items():
        difference = (ours[name] - expected).abs().max().item()
        allowed = IMAGE_TOLERANCE if name == "images" else LOSS_TOLERANCE * expected.abs().item()
        print(f"  {name}: difference {difference:.1e}, allowed {allowed:.1e}")
        if not difference <= allowed:
            raise SystemExit(f"ours and the rival do not compute the same {name}")


def compare(task: GANTask, rows: Sequence[Contender], turns: int) -> None:
    """Check, then run all contenders of one size."""
    print(f"\n{task.model}, {task.resolution} px, {task.channels} channels, batch {task.batch_size}, {task.threads} threads")
    check_agreement(task)
    contest(task, rows, turns)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", type=Path, required=True, metavar="FOLDER", help="a checkout of ajbrock/BigGAN-PyTorch")
    parser.add_argument("--model", choices=["sagan", "biggan"], default="sagan")
    parser.add_argument("--resolution", type=int, choices=list(ATTENTION), help="side of the images (default: 32, then 64)")
    parser.add_argument("--channels", type=int, default=32, help="channel multiplier (default: 32)")
    parser.add_argument("--batch", type=int, default=16, help="images of a step (default: 16; 32 at 32 px)")
    parser.add_argument("--turns", type=int, default=7, help="steps of each contender that count (default: 7)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="1: processor time (default: as many as torch takes)"
    )
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our processes keep freed memory, as those of `generative train` do (metrics.allocator)",
    )
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="ROW", help="only these rows of the table, from 1; 1 is always there"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = contenders(args.compile, args.keep_memory)
    rows = [row for number, row in enumerate(rows, 1) if args.only is None or number in {*REFERENCE_ROWS, *args.only}]
    sizes = SIZES if args.resolution is None else ((args.resolution, args.channels, args.batch),)
    for resolution, channels, batch_size in sizes:
        with tempfile.TemporaryDirectory(prefix="gan-training-") as folder:
            task = GANTask(args.model, resolution, channels, batch_size, args.threads, args.rival.resolve(), Path(folder))
            compare(task, rows, args.turns)


if __name__ == "__main__":
    main()
