"""A tiny tokenizer and its objective, for the tests in one process and, run as a script, in two: ``toy_tokenizer.py FOLDER``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.ema import ConstantEMA
from generative.tokenizers.base import CodeUse, Reconstruction, TrainableTokenizer
from generative.tokenizers.objective import TokenizerObjective
from generative.tokenizers.patch_discriminator import PatchDiscriminator


class ToyTokenizer(TrainableTokenizer, ModelMixin):
    """A strided convolution, a codebook of 4-vectors and a transposed convolution."""

    @register_to_config
    def __init__(self, image_size: int = 8, num_codes: int = 12, noise: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.codes = nn.Parameter(torch.randn(num_codes, 4))
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.config.image_size // 2, self.config.image_size // 2

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        return {"codebook": self.codes}

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.weight

    def look_up(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.encoder(images).float().permute(0, 2, 3, 1).flatten(0, 2)  # (N, 4)
        return vectors, torch.cdist(vectors, self.codes).argmin(1)

    def encode(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.look_up(images)[1].view(len(images), -1)

    def decode(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens)
        return self.decoder(self.codes[tokens].transpose(1, 2).unflatten(2, self.grid_size))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        vectors, ids = self.look_up(images)
        if self.config.noise:
            vectors = vectors + self.config.noise * torch.randn(vectors.shape, generator=generator)
        quantized = self.codes[ids]
        losses = {
            "codebook": (quantized - vectors.detach()).square().mean(),
            "commitment": (quantized.detach() - vectors).square().mean(),
        }
        passed = vectors + (quantized - vectors).detach()
        grid = passed.unflatten(0, (len(images), *self.grid_size)).permute(0, 3, 1, 2)
        use = CodeUse(ids, self.num_codes, vectors.detach())
        return Reconstruction(self.decoder(grid), losses, {"codebook": use})


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def build_objective(adversary: bool = True, optimizer: Any = adam, noise: float = 0.0, **options: Any) -> TokenizerObjective:
    """The objective, its weights always the same."""
    torch.manual_seed(0)
    tokenizer = ToyTokenizer(noise=noise)
    defaults: dict[str, Any] = {"regularizer_weights": {"commitment": 0.25}}
    if adversary:
        defaults |= {
            "discriminator": PatchDiscriminator(channels=2, num_layers=1),
            "discriminator_optimizer": adam,
            "adversarial": "non_saturating",
            "adversarial_weight": 0.1,
            "adversarial_start_steps": 1,
            "lecam_weight": 0.05,
        }
    return TokenizerObjective(tokenizer, optimizer, 3, **{**defaults, **options})


REVIVING = {"revive_dead_codes": True, "revival_threshold": 2, "revival_interval": 2, "ema": ConstantEMA(0.9)}


def load_toy() -> ModuleType:
    """The core's toys, whatever started this process."""
    path = Path(__file__).parents[1] / "core" / "toy.py"
    spec = importlib.util.spec_from_file_location("toy", path)
    assert spec is not None and spec.loader is not None
    sys.modules["toy"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_trainer(toy: ModuleType, folder: Path, objective: TokenizerObjective, **settings: Any) -> Any:
    """Six steps of 8 images of 8x8 pixels."""
    return toy.build_trainer(objective, folder, dataset=toy.ToyImages(num_images=24, image_size=8), **settings)


def main(folder: Path) -> None:
    """Train on every process and save each one's final state."""
    from safetensors.torch import save_file

    from generative.core.reconstruction import ReconstructionEvaluator

    torch.set_num_threads(1)
    toy = load_toy()
    data = toy.ToyImages(num_images=11, image_size=8, seed=5)
    evaluator = ReconstructionEvaluator(data, "efficientnet-lite0", input_size=32, batch_size=3)
    objective = build_objective(noise=0.1, **REVIVING)
    trainer = build_trainer(toy, folder / "run", objective, evaluator=evaluator, evaluate_interval_steps=3)
    trainer.fit()
    save_file(toy.snapshot(trainer), folder / f"{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    # Pipelines name a component's module, and this one has another name here than in the tests.
    sys.modules["toy_tokenizer"] = sys.modules["__main__"]
    main(Path(sys.argv[1]))
