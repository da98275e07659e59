"""Trains small networks, whole and cut over processes, on every process that a launcher started: ``FOLDER SCENARIO``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

from generative.autoregressive.next_scale.objective import VARObjective  # noqa: E402
from generative.autoregressive.next_scale.var import VAR  # noqa: E402
from generative.autoregressive.options import VAROptions  # noqa: E402
from generative.core import checkpoint as ckpt  # noqa: E402
from generative.core.ema import ConstantEMA, PowerEMA  # noqa: E402
from generative.core.errors import RunError, UserError  # noqa: E402
from generative.core.objective import Objective  # noqa: E402
from generative.core.optimizers import LAMB  # noqa: E402
from generative.core.tensor_parts import is_sharded, whole  # noqa: E402
from generative.core.trainer import Trainer  # noqa: E402
from generative.diffusion.formulations.edm import EDM  # noqa: E402
from generative.diffusion.formulations.interpolant import Interpolant  # noqa: E402
from generative.diffusion.networks.dit import DiT  # noqa: E402
from generative.diffusion.networks.edm2 import EDM2UNet  # noqa: E402
from generative.diffusion.objectives.denoising import DiffusionObjective  # noqa: E402
from generative.diffusion.options import DiffusionOptions  # noqa: E402
from generative.gan.objective import GANObjective  # noqa: E402
from generative.gan.penalties import R1  # noqa: E402
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator  # noqa: E402
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer  # noqa: E402

SLOTS = 6
SAMPLING = DiffusionOptions(num_inference_steps=2)


def dit() -> DiffusionObjective:
    """Blocks that are freed after their use; the eps keeps a sum in another order from turning a sign."""
    torch.manual_seed(0)
    denoiser = DiT(sample_size=4, patch_size=2, in_channels=3, hidden_size=20, depth=2, num_heads=1, num_classes=3)
    torch.nn.init.normal_(denoiser.final_layer.linear.weight, std=0.1)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, eps=1e-4, fused=True)
    return DiffusionObjective(denoiser, Interpolant(), optimizer, ema=[ConstantEMA(0.9), ConstantEMA(0.5)], sampling=SAMPLING)


def gan() -> GANObjective:
    """Two networks with scalars, spectral and batch norm; a penalty that differentiates twice; another gradient added by hand."""
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.9), eps=1e-3)
    return GANObjective(
        SAGANGenerator(8, channels=4, z_dim=6, num_classes=3, attention_resolutions=(8,)),
        SAGANDiscriminator(8, channels=4, num_classes=3, attention_resolutions=(4,)),
        adam,
        adam,
        ema=ConstantEMA(0.9),
        penalties=(R1(1.0, interval=2),),
        generator_orthogonal_weight=1e-3,
    )


def edm2() -> DiffusionObjective:
    """Weights held at a norm; an optimizer that asks for norms."""
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "in_channels": 3, "num_classes": 3, "model_channels": 4, "channel_mult": (1, 2), "num_blocks": 1}
    denoiser = EDM2UNet(**sizes, attention_resolutions=(2,), channels_per_head=4, logvar_channels=4)
    optimizer = partial(LAMB, lr=0.01, eps=1e-4, weight_decay=0.1)
    return DiffusionObjective(denoiser, EDM(), optimizer, ema=PowerEMA(std=0.1), sampling=SAMPLING)


def var() -> VARObjective:
    """Blocks of which the network calls more than the block itself, on the ids of a frozen tokenizer."""
    torch.manual_seed(0)
    pyramid = {"num_codes": 6, "latent_channels": 4, "patch_nums": (1, 2)}
    tokenizer = MultiScaleVQTokenizer(image_size=4, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2, **pyramid)
    transformer = VAR(num_classes=3, hidden_size=20, depth=2, num_heads=2, adaln_gain_init=0.1, **pyramid)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, eps=1e-4)
    return VARObjective(transformer, tokenizer, optimizer, ema=ConstantEMA(0.9), sampling=VAROptions())


def build(objective: Objective, folder: Path, **settings: Any) -> Trainer:
    """A trainer of 4 steps of 12 images in six slots, however many processes there are."""
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    given = {"total_images": 48, "batch_size": 12, "gradient_accumulation_steps": SLOTS // num_processes, **settings}
    dataset = toy.ToyImages(image_size=objective.image_size)
    return toy.build_trainer(objective, folder, dataset=dataset, **given)


def end(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All tensors at the end of a run, whole."""
    return {
        f"{file.path} {key}": whole(value).contiguous()
        for file in trainer._trained.files()
        for key, value in file.tensors.items()
    }


CASES = {
    "dit": (dit, {"max_grad_norm": 0.5, "gradient_checkpointing": True}),
    "gan": (gan, {"max_grad_norm": 5.0, "gradient_checkpointing": True}),
    "edm2": (edm2, {"ema_snapshot_interval_images": 24}),
    "var": (var, {"gradient_checkpointing": True}),
    "var-bf16": (var, {"mixed_precision": "bf16", "max_grad_norm": 1.0}),
}


def done(folder: Path, scenario: str) -> None:
    """Say that all went well so far."""
    (folder / f"{scenario} is done").touch()


def compare(folder: Path, rank: int) -> None:
    """Two processes: every case whole and cut, the first one in other ways too, and then what may fail."""
    for name, (make, settings) in CASES.items():
        for shard in ("none", "full"):
            trainer = build(make(), folder / f"{name}-{shard}", shard=shard, **settings)
            trainer.fit()
            assert [is_sharded(n) for n in trainer.objective.networks.values()] == [shard == "full"] * len(trainer.phases[:2])
            tensors = end(trainer)
            if rank == 0:
                save_file(tensors, folder / f"{name}-{shard}.safetensors")
    make, settings = CASES["dit"]
    for name, more in (
        ("dit-async", {"shard": "full", "async_checkpoint": True}),
        ("dit-hybrid", {"shard": "hybrid", "shard_group_size": 2}),
    ):
        build(make(), folder / name, **settings, **more).fit()
    done(folder, "compare")
    fail(folder, rank)  # last, as it ends a process


def resume(folder: Path, rank: int) -> None:
    """Three processes: go on from the middle of a run of two that was cut, and of one that was not, both ways."""
    make, settings = CASES["dit"]
    for name, shard, source in (("cut", "full", "dit-full"), ("whole", "full", "dit-none"), ("uncut", "none", "dit-full")):
        run = folder / f"three-{name}"
        trainer = build(make(), run, shard=shard, **settings)
        trainer.fit(ckpt.resolve_checkpoint(run, str(folder / source / "checkpoint-00000002")))
        tensors = end(trainer)
        if rank == 0:
            save_file(tensors, folder / f"three-{name}.safetensors")
    done(folder, "resume")


def groups(folder: Path, rank: int) -> None:
    """Four processes in two groups, each of which holds everything."""
    make, settings = CASES["dit"]
    trainer = build(make(), folder / "four", shard="hybrid", shard_group_size=2, gradient_accumulation_steps=1, **settings)
    trainer.fit()
    mesh = trainer.sharding.mesh
    assert mesh is not None and mesh.size(0) == mesh.size(1) == 2
    assert all(is_sharded(network) for network in trainer.objective.networks.values())
    tensors = end(trainer)
    if rank == 0:
        save_file(tensors, folder / "four.safetensors")
    done(folder, "groups")


def fail(folder: Path, rank: int) -> None:
    """The second process's disk is full while it writes in the background; then the first is killed in a save."""
    write = ckpt.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "-00002-of-" in path.name:
            raise OSError(28, "No space left on device")
        write(tensors, path, **options)

    ckpt.save_file = full
    trainer = build(dit(), folder / "full", shard="full", async_checkpoint=True, total_images=1200)
    try:
        trainer.fit()
    except (UserError, RunError) as error:
        (folder / f"full-{rank}.txt").write_text(f"{type(error).__name__} {trainer.step} {error}")

    def slow(tensors: Any, path: Path, **options: Any) -> None:
        write(tensors, path, **options)
        if trainer.step >= 4 and rank == 0:
            time.sleep(0.5)  # training goes on meanwhile
            (folder / "killed at.txt").write_text(str(trainer.step))
            os.kill(os.getpid(), signal.SIGKILL)

    ckpt.save_file = slow
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which may come before the sentence below is written
    trainer = build(dit(), folder / "killed", shard="full", async_checkpoint=True, total_images=12000)
    began = time.monotonic()
    try:
        trainer.fit()
    except RunError as error:
        (folder / f"killed-{rank}.txt").write_text(json.dumps([str(error), time.monotonic() - began]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"compare": compare, "resume": resume, "groups": groups}[sys.argv[2]](Path(sys.argv[1]), int(os.environ["RANK"]))
    # A group that is still there when the interpreter ends can abort the process.
    torch.distributed.destroy_process_group()
