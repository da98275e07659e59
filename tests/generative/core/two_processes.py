"""Trains the toys on every process that a launcher started and saves the end of each run: ``two_processes.py FOLDER``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

from generative.core import checkpoint as ckpt  # noqa: E402
from generative.core.ema import ConstantEMA  # noqa: E402
from generative.core.gradient_buckets import GradientBuckets  # noqa: E402
from generative.core.observer import DivergenceError  # noqa: E402


def main(folder: Path) -> None:
    """Run every case of ``CASES`` and keep each process's final state."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, make in CASES.items():
        objective = make()
        for network in objective.networks.values() if rank else ():
            # Every process starts from the main one's weights, whatever its own were.
            for parameter in network.parameters():
                parameter.data.zero_()
        scores = (
            {"evaluator": toy.evaluator(batch_size=4, classifier_data=toy.ToyImages(seed=3)), "evaluate_interval_steps": 3}
            if name == "dropout"
            else {}
        )
        trainer = toy.build_trainer(objective, folder / name, sample_interval_steps=3, **scores)
        trainer.fit()
        save_file(toy.snapshot(trainer), folder / f"{name}-{rank}.safetensors")

    stopped = toy.build_trainer(toy.denoiser(), folder / "stopped")
    if rank:
        # One process is asked to stop: all must, at the same step.
        stopped.objective.on_call = lambda batch: stopped.request_stop(15) if stopped.step == 2 else None
    stopped.fit()
    # Asked during the third step, when the fourth was agreed on already.
    assert stopped.step == 4 and stopped.stopped_by == 15
    resumed = toy.build_trainer(toy.denoiser(), folder / "stopped", sample_interval_steps=3)
    resumed.fit(ckpt.resolve_checkpoint(folder / "stopped", "latest"))
    save_file(toy.snapshot(resumed), folder / f"stopped-{rank}.safetensors")

    save_file(summed_gradients(rank), folder / f"buckets-{rank}.safetensors")

    diverged = toy.build_trainer(toy.denoiser(nan_at_call=3 if rank else None), folder / "diverged")
    try:
        diverged.fit()
    except DivergenceError as error:
        (folder / f"diverged-{rank}.txt").write_text(str(error))


def summed_gradients(rank: int) -> dict[str, torch.Tensor]:
    """Gradients over two micro-batches and processes, of parameters that some process, or none, uses; in several buckets."""
    parameters = {
        "everywhere": torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "on one process": torch.ones(5),
        "nowhere": torch.ones(7),
        "scalar": torch.tensor(1.0),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    parameters = {name: torch.nn.Parameter(value) for name, value in parameters.items()}
    buckets = GradientBuckets(list(parameters.values()), bucket_bytes=100)
    assert [len(bucket.parameters) for bucket in buckets.buckets] == [4, 1]
    used = ["everywhere", "scalar", "half", *(["on one process"] if rank else [])]
    for micro_batch in (1, 2):
        loss = sum(micro_batch * (rank + 1) * parameters[name].float().sum() for name in used)
        with buckets.reduced() if micro_batch == 2 else nullcontext():
            loss.backward()
    assert parameters["everywhere"].grad.stride() == parameters["everywhere"].stride()
    assert parameters["half"].grad.dtype == torch.bfloat16
    return {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}


CASES = {
    "gan": lambda: toy.gan(toy.adam, ema=ConstantEMA(0.9)),
    "masked": toy.masked,
    "dropout": lambda: toy.denoiser(batch_norm=False),
    "denoiser": toy.denoiser,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # A group that is still there when the interpreter ends can abort the process.
    torch.distributed.destroy_process_group()
