"""Constructor arguments of BigGAN-PyTorch's networks (BigGAN.py, and what BigGANdeep.py has in common with it), made ours."""

from __future__ import annotations

import re
from typing import Any

from generative.convert.files.options import ConstructorOptions
from generative.convert.gan.biggan_recognition import DISCRIMINATOR_RESOLUTIONS, GENERATOR_RESOLUTIONS
from generative.core.errors import UserError
from generative.gan.residual import check_resolution, discriminator_stages, generator_stages

# Options of the official constructors that only train: learning rates and so on build no layer.
TRAINING_OPTIONS = ("lr", "B1", "B2")
SHARED_TRAINING_OPTIONS = ("adam_eps", "skip_init", "no_optim")
# Half precision of the official code is by hand; ours is the trainer's, so a network that asks for it is not the same one.
HALF_PRECISION_OPTIONS = ("fp16", "mixed_precision")
RELU_NAMES = ("relu", "inplace_relu", "ir")
INIT_NAMES = {"xavier": "xavier", "glorot": "xavier", "ortho": "orthogonal", "N02": "normal"}
NORM_STYLES = {"bn": "batch", "in": "instance", "nonorm": "none"}


class OfficialOptions(ConstructorOptions):
    """Arguments of one constructor of the official code."""

    repository = "BigGAN-PyTorch"

    def drop_training_options(self, prefix: str) -> None:
        """Consume the options that build no layer; half precision must be off."""
        self.drop(*(f"{prefix}_{option}" for option in TRAINING_OPTIONS), *SHARED_TRAINING_OPTIONS)
        for option in HALF_PRECISION_OPTIONS:
            self.choose(f"{prefix}_{option}", False, {False: None})
        self.drop(f"{prefix}_kernel_size")  # the official code stores it and builds 3x3 convolutions all the same


def attention_from_string(text: str, stages: list[int]) -> tuple[int, ...]:
    """Translate "64_16" to (64, 16). Sizes that no block puts out are ignored, as "0", the official way to say none, relies on.

    Raises:
        UserError: If the text is not numbers joined by underscores.
    """
    if not re.fullmatch(r"\d+(_\d+)*", str(text)):
        raise UserError(f"attention resolutions of BigGAN-PyTorch look like '64' or '64_16', got {text!r}")
    return tuple(size for size in dict.fromkeys(map(int, str(text).split("_"))) if size in stages)


def spectral_options(options: OfficialOptions, prefix: str) -> dict[str, Any]:
    """Translate what both networks say of spectral norm and initialisation."""
    return {
        "spectral_norm_eps": options.take("SN_eps", 1e-12),
        "num_singular_values": options.take(f"num_{prefix}_SVs", 1, int),
        "num_power_iterations": options.take(f"num_{prefix}_SV_itrs", 1, int),
        "weight_init": options.choose(f"{prefix}_init", "ortho", INIT_NAMES),
    }


def generator_arguments(options: OfficialOptions) -> dict[str, Any]:
    """Translate the arguments of the official ``Generator``, ``hier`` left out.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    options.drop_training_options("G")
    # Outside multi-GPU training, eval mode included, the official code adds the gain in this mode where it should multiply.
    options.choose("cross_replica", False, {False: None})
    options.choose("G_activation", "relu", dict.fromkeys(RELU_NAMES))
    resolution = options.take("resolution", 128, int)
    check_resolution(resolution, dict.fromkeys(GENERATOR_RESOLUTIONS))
    z_dim = options.take("dim_z", 128, int)
    is_shared = options.choose("G_shared", True, {True: True, False: False})
    shared_dim = options.take("shared_dim", 0, int)
    has_own_norm = options.choose("mybn", False, {False: False, True: True})
    norm = options.choose("norm_style", "bn", NORM_STYLES)
    arguments = {
        "resolution": resolution,
        "channels": options.take("G_ch", 64, int),
        "z_dim": z_dim,
        "num_classes": options.take("n_classes", 1000, int),
        "attention_resolutions": attention_from_string(options.take("G_attn", "64"), generator_stages(resolution)),
        "bottom_width": options.take("bottom_width", 4, int),
        "shared_embedding_dim": (shared_dim if shared_dim > 0 else z_dim) if is_shared else None,
        "norm": "batch" if has_own_norm else norm,  # the official code looks at mybn first
        "moving_variance": "biased" if has_own_norm else "unbiased",
        "batch_norm_eps": options.take("BN_eps", 1e-5),
        "spectral_norm": options.choose("G_param", "SN", {"SN": True, "None": False, None: False}),
        **spectral_options(options, "G"),
    }
    options.finish()
    return arguments


def discriminator_arguments(options: OfficialOptions) -> dict[str, Any]:
    """Translate the arguments of the official ``Discriminator``.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    options.drop_training_options("D")
    options.choose("D_activation", "relu", dict.fromkeys(RELU_NAMES))
    options.choose("D_param", "SN", {"SN": None})
    resolution = options.take("resolution", 128, int)
    check_resolution(resolution, dict.fromkeys(DISCRIMINATOR_RESOLUTIONS))
    attention = options.take("D_attn", "64")
    attended: tuple[int, ...]
    if resolution == 32:  # the official table calls the output of every block 16 x 16, though all but the first put out 8 x 8
        attended = (16, 8) if attention_from_string(attention, [16]) else ()
    else:
        attended = attention_from_string(attention, discriminator_stages(resolution))
    arguments = {
        "resolution": resolution,
        "channels": options.take("D_ch", 64, int),
        "num_classes": options.take("n_classes", 1000, int),
        "attention_resolutions": attended,
        "wide": options.choose("D_wide", True, {True: True, False: False}),
        "output_dim": options.take("output_dim", 1, int),
        **spectral_options(options, "D"),
    }
    options.finish()
    return arguments
