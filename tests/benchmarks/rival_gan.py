"""BigGAN-PyTorch as its users run it, from a checkout, patched in memory only where today's torch needs it.

1. ``datasets.py`` imports h5py, which nothing here uses: an empty module stands for it where it is not installed.
2. ``utils.Distribution`` is a subclass of Tensor. Since torch 1.7 a subclass passes to everything computed from it, and each
   operation of the network then goes through Python. That is switched off, in the rival's favour.
3. ``layers.SN.W_`` flattens weights by ``view``, which fails on channels-last weights: ``reshape`` there.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import textwrap
import types
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NUM_CLASSES = 10
#: Attention after the generator's blocks of this size, and the discriminator's: one in each network, as in the papers, at half of
#: the size of the images.
ATTENTION = {32: "16", 64: "32", 128: "64", 256: "64"}
BETAS = (0.0, 0.999)
GENERATOR_LR, DISCRIMINATOR_LR = 1e-4, 4e-4
EMA_DECAY = 0.9999
#: Adam's epsilon, from the launch scripts of the two models.
ADAM_EPS = {"sagan": 1e-8, "biggan": 1e-6}


def official_options(model: str, resolution: int, channels: int) -> dict[str, dict[str, Any]]:
    """Constructor arguments of both networks: those of ``launch_SAGAN_bs128x2_ema.sh`` and ``launch_BigGAN_bs256x8.sh``."""
    is_biggan = model == "biggan"
    common = {"resolution": resolution, "n_classes": NUM_CLASSES, "SN_eps": 1e-6 if is_biggan else 1e-8}
    init = "ortho" if is_biggan else "xavier"
    generator = {"G_ch": channels, "G_attn": ATTENTION[resolution], "G_init": init, "BN_eps": 1e-5, **common}
    if is_biggan:
        generator |= {"dim_z": 120, "hier": True, "G_shared": True, "shared_dim": 128}
    else:
        generator |= {"dim_z": 128, "G_shared": False}
    return {
        "generator": generator,
        "discriminator": {"D_ch": channels, "D_attn": ATTENTION[resolution], "D_init": init, **common},
    }


@cache
def load_rival(checkout: Path) -> types.SimpleNamespace:
    """Import the checkout's modules and patch them.

    Raises:
        SystemExit: If the folder is not a checkout of BigGAN-PyTorch.
    """
    if not (checkout / "BigGAN.py").exists():
        raise SystemExit(f"'{checkout}' is not a checkout of BigGAN-PyTorch: it has no BigGAN.py")
    sys.path.append(str(checkout))
    try:
        import h5py  # noqa: F401
    except ImportError:
        sys.modules["h5py"] = types.ModuleType("h5py")
    with contextlib.redirect_stdout(io.StringIO()):
        import BigGAN
        import layers
        import losses
        import train_fns
        import utils
    utils.Distribution.__torch_function__ = torch._C._disabled_torch_function_impl
    source = textwrap.dedent(inspect.getsource(layers.SN.W_))
    namespace: dict[str, Any] = {}
    exec(source.replace("self.weight.view(", "self.weight.reshape("), layers.__dict__, namespace)
    layers.SN.W_ = namespace["W_"]
    return types.SimpleNamespace(BigGAN=BigGAN, losses=losses, train_fns=train_fns, utils=utils)


class RivalGAN:
    """Its networks, Adam, average and training function.

    Args:
        checkout: Folder of the repository.
        model: ``sagan`` or ``biggan``.
        resolution: Side of the images, in pixels.
        channels: Channel multiplier.
        images: (B, 3, H, W) real images in [-1, 1], for every step.
        labels: (B,) their classes.
        channels_last: Lay images and weights out so.
    """

    def __init__(
        self, checkout: Path, model: str, resolution: int, channels: int, images: Tensor, labels: Tensor, channels_last: bool
    ) -> None:
        self.modules = load_rival(checkout)
        options = official_options(model, resolution, channels)
        shared = {"adam_eps": ADAM_EPS[model]}
        rates = {"G_lr": GENERATOR_LR, "G_B1": BETAS[0], "G_B2": BETAS[1]}
        with contextlib.redirect_stdout(io.StringIO()):
            self.generator = self.modules.BigGAN.Generator(**options["generator"], **rates, **shared)
            rates = {"D_lr": DISCRIMINATOR_LR, "D_B1": BETAS[0], "D_B2": BETAS[1]}
            self.discriminator = self.modules.BigGAN.Discriminator(**options["discriminator"], **rates, **shared)
            self.average = self.modules.BigGAN.Generator(**options["generator"], skip_init=True, no_optim=True).eval()
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
            for network in (self.generator, self.discriminator, self.average):
                network.to(memory_format=torch.channels_last)
        self.images, self.labels = images, labels
        self.both = self.modules.BigGAN.G_D(self.generator, self.discriminator)

    def prepare(self) -> None:
        """Make its average and training function, with the networks' weights as they are now."""
        with contextlib.redirect_stdout(io.StringIO()):
            ema = self.modules.utils.ema(self.generator, self.average, EMA_DECAY, 0)
        batch_size = len(self.images)
        self.z, self.y = self.modules.utils.prepare_z_y(batch_size, self.generator.dim_z, NUM_CLASSES, device="cpu")
        config = {"batch_size": batch_size, "num_D_steps": 1, "num_D_accumulations": 1, "num_G_accumulations": 1}
        config |= {"toggle_grads": True, "split_D": False, "D_ortho": 0.0, "G_ortho": 0.0, "ema": True}
        self.train = self.modules.train_fns.GAN_training_function(
            self.generator, self.discriminator, self.both, self.z, self.y, ema, {"itr": 1}, config
        )

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take weights of both networks."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.prepare()

    def step(self) -> None:
        """One step of the discriminator and of the generator, and of the average."""
        self.train(self.images, self.labels)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """As many images (B, 3, H, W) as the batch has, from the average."""
        self.z.sample_()
        self.y.sample_()
        return self.average(self.z, self.average.shared(self.y))
