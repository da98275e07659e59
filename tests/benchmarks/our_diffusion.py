"""Our side of ``diffusion_training.py``: the trainer's own step on one batch that stays, and sampling through the pipeline."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from contest import Contender
from diffusion_task import EMA_DECAY, GUIDANCE, LEARNING_RATE, STEPS, DiffusionTask
from our_gan import OneImage
from torch import Tensor

from generative.convert import get_source, load_official
from generative.core.ema import ConstantEMA
from generative.core.runtime import build_accelerator
from generative.core.sampling import SampleState
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.diffusion.denoiser import Branch, Condition, evaluator
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.pyramid import PyramidObjective
from generative.diffusion.objectives.self_conditioning import SelfConditioning
from generative.diffusion.options import DiffusionOptions

GUIDED = ("dit", "sit", "dit-pipeline", "u-vit", "dimr")
ALL_CHANNELS = ("dit-pipeline", "u-vit", "dimr")


class Ours:
    """Our trainer and pipeline.

    Args:
        task: The sizes.
        contender: Precision, and whether to compile.
    """

    def __init__(self, task: DiffusionTask, contender: Contender) -> None:
        source = get_source(task.model)
        networks = source.build(dict(task.config))
        load_official(source, networks, task.state())
        converted = source.pipeline(networks, dict(task.config))
        self.network, self.formulation, self.model = converted.denoiser, converted.formulation, task.model
        self.options: dict[str, Any] = {"num_inference_steps": STEPS}
        if task.model in GUIDED:
            channels = {} if task.model in ALL_CHANNELS else {"guidance_channels": 3}
            self.options |= {"guidance_scale": GUIDANCE, **channels}
        optimizer = torch.optim.Adam if task.model == "edm2" else partial(torch.optim.AdamW, weight_decay=0.0)
        kind = PyramidObjective if task.model == "dimr" else DiffusionObjective
        extra: dict[str, Any] = {"self_conditioning": SelfConditioning(rate=0.9)} if task.model == "rin" else {}
        self.objective = kind(
            self.network,
            self.formulation,
            sampler=converted.scheduler,
            optimizer=partial(optimizer, lr=LEARNING_RATE, fused=True),
            ema=ConstantEMA(EMA_DECAY, warmup=False),
            label_dropout=0.1 if task.model in GUIDED else 0.0,
            sampling=DiffusionOptions(**self.options),
            **extra,
        )
        self.batch: Any = task.batch()
        settings = TrainerConfig(
            output_dir=task.folder / "run",
            total_images=10**9,
            batch_size=task.batch_size,
            mixed_precision=contender.precision,  # type: ignore[arg-type]
            compile=contender.compile,
            channels_last=contender.channels_last,
        )
        self.accelerator = build_accelerator(contender.precision)  # type: ignore[arg-type]
        self.trainer = Trainer(
            self.objective, OneImage(task.batch()["images"].shape[-1], task.num_classes), settings, self.accelerator
        )
        self.pipeline: Any = None

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """What the rival's predicts."""
        evaluate = evaluator(self.network.eval(), self.formulation)
        (output,) = evaluate(SampleState(sample), times, [Branch(Condition(labels))])
        return self.formulation.predict_start(output, sample, times) if self.model == "edm2" else output.prediction

    def step(self) -> None:
        """One step of the trainer, the average included."""
        self.trainer.train_step([[self.batch]])

    def sample(self) -> None:
        """As many images as the batch has."""
        if self.pipeline is None:
            self.pipeline = self.trainer.sampling_pipeline()
            self.pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            self.pipeline(self.batch["class_labels"], output_type="pt", return_dict=False, **self.options)
