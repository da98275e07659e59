"""google-research/pix2seq's RIN as its training and sampling loops run it, from a checkout, in TensorFlow.

It needs ``tensorflow-cpu``, ``tf_keras``, ``einops``, ``ml_collections`` and ``matplotlib`` beside torch. Both step by Adam:
its LAMB is tensorflow_addons', which ended with TensorFlow 2.15. Operations of TensorFlow are not counted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusion_task import EMA_DECAY, LEARNING_RATE, STEPS, DiffusionTask
from torch import Tensor

OWNER = "tape/"
"""What the official names of variables begin with."""


class Weights:
    """The variables of its network and of its average, handed over as a state dict."""

    def __init__(self, trained: Any, average: Any) -> None:
        self.trained, self.average = trained, average

    def state_dict(self) -> dict[str, Tensor]:
        """Variables by their official names."""
        return {OWNER + name_of(variable): torch.from_numpy(variable.numpy().copy()) for variable in self.trained.variables}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set both from a state dict of this class's names."""
        for network in (self.trained, self.average):
            for variable in network.variables:
                variable.assign(state[OWNER + name_of(variable)].numpy())


def name_of(variable: Any) -> str:
    """A variable's name without that of the network it belongs to."""
    _, _, rest = str(variable.name).partition("/")
    return rest.removeprefix(OWNER).removesuffix(":0")


class Rival:
    """Its model, loss, average and sampler, each step traced by ``tf.function`` as ``run.py`` does.

    Args:
        task: The sizes, and the checkout.
    """

    is_foreign = True

    def __init__(self, task: DiffusionTask) -> None:
        os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        sys.path.insert(0, str(task.checkout))
        for name in ("tensorflow_addons", "tensorflow_addons.layers"):  # optimizers and norms, which are not built
            sys.modules[name] = ModuleType(name)
        sys.modules["tensorflow_addons"].layers = sys.modules["tensorflow_addons.layers"]  # type: ignore[attr-defined]
        import tensorflow as tf  # type: ignore[import-not-found,import-untyped,unused-ignore]

        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.random.set_seed(0)
        import ml_collections  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from models.image_diffusion_model import Model  # type: ignore[import-not-found,import-untyped,unused-ignore]

        options = dict(task.config)
        side, classes = options.pop("image_height"), options.pop("num_classes")
        for name in ("image_width", "image_channels"):
            del options[name]
        config = ml_collections.ConfigDict(
            {"dataset": {"image_size": side, "num_classes": classes}, "model": {"arch_name": "tape", **options}}
        )
        self.tf, self.model, self.schedule = tf, Model(config), options["infer_schedule"]
        batch = task.batch()
        # From -1..1, which is what the official loss makes of its images itself.
        self.images = tf.constant(batch["images"].movedim(1, -1).numpy() / 2 + 0.5)
        self.labels = tf.one_hot(batch["class_labels"].numpy(), classes)
        for training in (True, False):  # which makes the variables
            self.model.denoise(self.images, tf.zeros(len(self.images)), self.labels, training)
        self.network = Weights(self.model.denoiser, self.model.denoiser_ema)
        rng = np.random.default_rng(0)
        for variable in self.model.denoiser.variables:  # what starts at zero hides what is behind it
            if not variable.numpy().any():
                variable.assign(rng.normal(scale=0.02, size=variable.shape))
        optimizer = tf.keras.optimizers.legacy.Adam(LEARNING_RATE)

        def train() -> Any:
            with tf.GradientTape() as tape:
                loss = self.model(self.images, self.labels, training=True)
            trained = self.model.denoiser.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
            for average, value in zip(self.model.denoiser_ema.variables, self.model.denoiser.variables, strict=True):
                average.assign(average * EMA_DECAY + value * (1 - EMA_DECAY))
            return loss

        def draw() -> Any:
            return self.model.scheduler.generate(
                self.model.get_cond_denoise(self.labels),
                STEPS,
                self.images.shape,
                hidden_shapes=self.model.hidden_shapes,
                pred_type=options["pred_type"],
                schedule=self.schedule,
                x0_clip=self.model.x0_clip,
                self_cond=options["self_cond"],
                sampler_name=options["sampler_name"],
            )

        self._train, self._draw = tf.function(train), tf.function(draw)

    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """What the network makes of a sample, its memory empty."""
        gamma = self.model.scheduler.time_transform(self.tf.constant(times.numpy()))
        one_hot = self.tf.one_hot(labels.numpy(), self.labels.shape[-1])
        output = self.model.denoise(self.tf.constant(sample.movedim(1, -1).numpy()), gamma, one_hot, True)
        return torch.from_numpy(output[0].numpy()).movedim(-1, 1)

    def step(self) -> None:
        """One training step, the average included."""
        self._train().numpy()

    def sample(self) -> Tensor:
        """As many images as the batch has."""
        return torch.from_numpy(self._draw().numpy())
