"""Our side of ``token_training.py``: the trainer's own step on one batch that stays, and sampling through the pipeline."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from contest import Contender
from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import register_to_config
from our_gan import OneImage
from rival_mar import EMA_DECAY
from token_task import GUIDANCE, MAR_ITERATIONS, MAX_GRAD_NORM, OPTIMIZER, TokenTask
from torch import Tensor

from generative.convert import get_source, load_official
from generative.core.ema import ConstantEMA
from generative.core.objective import Objective
from generative.core.runtime import build_accelerator
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.tokenizers.base import ImageTokenizer


class BareTokens(ImageTokenizer, ModelMixin):
    """A tokenizer of a grid of ids that never encodes or decodes: only the transformer takes part.

    Args:
        num_codes: V.
        side: Rows and columns.
    """

    @register_to_config
    def __init__(self, num_codes: int, side: int) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))

    num_codes = property(lambda self: self.config.num_codes)
    grid_size = property(lambda self: (self.config.side, self.config.side))
    image_size = property(lambda self: self.config.side)

    def encode(self, images: Tensor) -> Tensor:
        """Never called."""
        raise AssertionError("the batch brings its tokens")

    def decode(self, tokens: Tensor) -> Tensor:
        """The ids themselves, as an image would be returned."""
        return tokens.unflatten(1, self.grid_size)[:, None].expand(-1, 3, -1, -1).float()


def flat(state: dict[str, Any]) -> dict[str, Tensor]:
    """Official weights keyed as ``load_official`` takes them."""
    if all(isinstance(value, Tensor) for value in state.values()):
        return state
    return {f"{module}/{key}": value for module, part in state.items() for key, value in part.items()}


def build_objective(task: TokenTask) -> tuple[Objective, dict[str, Any]]:
    """Our objective with the rival's weights and optimizer, and options of the pipeline's call."""
    source = get_source(task.model)
    config = {"gpt": task.config["gpt"]} if task.model == "llamagen" else task.config
    networks = source.build(config)
    load_official(source, networks, flat(task.state()))
    optimizer = partial(torch.optim.AdamW, **OPTIMIZER, fused=True)
    if task.model == "var":
        from generative.autoregressive.next_scale.objective import VARObjective

        return VARObjective(networks["var"], networks["vae"], optimizer), {"guidance_scale": GUIDANCE}
    if task.model == "llamagen":
        from generative.autoregressive.next_token.objective import AutoregressiveObjective

        gpt = task.config["gpt"]
        tokenizer = BareTokens(gpt["vocab_size"], int(gpt["block_size"] ** 0.5))
        return AutoregressiveObjective(networks["gpt"], tokenizer, optimizer), {"guidance_scale": GUIDANCE}
    from generative.autoregressive.continuous.objective import MARObjective

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = AutoencoderKL(
        latent_channels=task.config["vae_embed_dim"], block_out_channels=(8,) * 4, norm_num_groups=4, **blocks
    )
    objective = MARObjective(
        networks["model"], optimizer, ConstantEMA(EMA_DECAY, warmup=False), autoencoder, diffusion_batch_mul=4
    )
    options = {"guidance_scale": GUIDANCE, "guidance_schedule": "linear", "num_inference_steps": MAR_ITERATIONS}
    return objective, options | {"num_diffusion_steps": int(task.config["num_sampling_steps"])}


class Ours:
    """Our trainer and pipeline.

    Args:
        task: The sizes.
        contender: Precision, and whether to compile.
    """

    def __init__(self, task: TokenTask, contender: Contender) -> None:
        self.objective, self.options = build_objective(task)
        self.batch: Any = task.batch()
        settings = TrainerConfig(
            output_dir=task.folder / "run",
            total_images=10**9,
            batch_size=task.batch_size,
            mixed_precision=contender.precision,  # type: ignore[arg-type]
            compile=contender.compile,
            max_grad_norm=MAX_GRAD_NORM,
        )
        self.accelerator = build_accelerator(contender.precision)  # type: ignore[arg-type]
        self.trainer = Trainer(self.objective, OneImage(self.objective.image_size), settings, self.accelerator)
        self.pipeline: Any = None
        self.compile = contender.compile
        self.model = task.model

    def step(self) -> None:
        """One step of the trainer, the average included where the rival has one."""
        self.trainer.train_step([[self.batch]])

    def sample(self, **options: Any) -> Tensor:
        """As many images as the batch has; of MAR latents only, as the rival's."""
        if self.pipeline is None:
            self.pipeline = self.trainer.sampling_pipeline()
            self.pipeline.set_progress_bar_config(disable=True)
            if self.model == "mar":
                self.pipeline.decode = lambda state: self.pipeline.network.unpatchify(state.sample)
                self.pipeline.postprocess = lambda images, *args: (images,)
        with self.accelerator.autocast():
            result = self.pipeline(self.batch["class_labels"], output_type="pt", return_dict=False, **self.options | options)
        images: Tensor = result[0]
        return images
