"""Constructor arguments of BigGAN-PyTorch's networks (BigGAN.py, and what BigGANdeep.py has in common with it), made ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from generative.convert.arguments import ANY, FLAG, NUMBER, OFF, UNUSED, WHOLE, Argument, Constructor, one_of
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


REPOSITORY = "BigGAN-PyTorch"


def shared_arguments(prefix: str) -> dict[str, Argument]:
    """Arguments that both networks have: training, spectral norm and initialisation.

    Args:
        prefix: ``G`` or ``D``, which begins the names of most.
    """
    return {
        **dict.fromkeys((*(f"{prefix}_{option}" for option in TRAINING_OPTIONS), *SHARED_TRAINING_OPTIONS), UNUSED),
        **dict.fromkeys((f"{prefix}_{option}" for option in HALF_PRECISION_OPTIONS), Argument(None, False, OFF)),
        f"{prefix}_kernel_size": UNUSED,  # the official code stores it and builds 3x3 convolutions all the same
        f"{prefix}_activation": Argument(None, "relu", one_of(RELU_NAMES)),
        f"{prefix}_ch": Argument("channels", 64, WHOLE),
        f"{prefix}_attn": Argument("attention_resolutions", "64", ANY),  # see ``attention_from_string``
        f"{prefix}_init": Argument("weight_init", "ortho", one_of(INIT_NAMES)),
        f"num_{prefix}_SVs": Argument("num_singular_values", 1, WHOLE),
        f"num_{prefix}_SV_itrs": Argument("num_power_iterations", 1, WHOLE),
        "SN_eps": Argument("spectral_norm_eps", 1e-12, NUMBER),
        "resolution": Argument("resolution", 128, WHOLE),
        "n_classes": Argument("num_classes", 1000, WHOLE),
    }


def generator_constructor(own: Mapping[str, Argument]) -> Constructor:
    """The official ``Generator`` of either file, with what one of them has otherwise."""
    arguments = {
        **shared_arguments("G"),
        # Outside multi-GPU training, eval mode included, the official code adds the gain in this mode where it should multiply.
        "cross_replica": Argument(None, False, OFF),
        "dim_z": Argument("z_dim", 128, WHOLE),
        "G_shared": Argument(None, True, FLAG),
        "shared_dim": Argument(None, 0, WHOLE),
        "mybn": Argument(None, False, FLAG),
        "norm_style": Argument("norm", "bn", one_of(NORM_STYLES)),
        "bottom_width": Argument("bottom_width", 4, WHOLE),
        "BN_eps": Argument("batch_norm_eps", 1e-5, NUMBER),
        "G_param": Argument("spectral_norm", "SN", one_of({"SN": True, "None": False, None: False})),
    }
    return Constructor("generator", REPOSITORY, {**arguments, **own})


def discriminator_constructor(own: Mapping[str, Argument]) -> Constructor:
    """The official ``Discriminator`` of either file, with what one of them has otherwise."""
    arguments = {
        **shared_arguments("D"),
        "D_param": Argument(None, "SN", one_of(("SN",))),
        "D_wide": Argument("wide", True, FLAG),
        "output_dim": Argument("output_dim", 1, WHOLE),
    }
    return Constructor("discriminator", REPOSITORY, {**arguments, **own})


def attention_from_string(text: str, stages: list[int]) -> tuple[int, ...]:
    """Translate "64_16" to (64, 16). Sizes that no block puts out are ignored, as "0", the official way to say none, relies on.

    Raises:
        UserError: If the text is not numbers joined by underscores.
    """
    if not re.fullmatch(r"\d+(_\d+)*", str(text)):
        raise UserError(f"attention resolutions of BigGAN-PyTorch look like '64' or '64_16', got {text!r}")
    return tuple(size for size in dict.fromkeys(map(int, str(text).split("_"))) if size in stages)


def generator_arguments(constructor: Constructor, config: Mapping[str, Any]) -> dict[str, Any]:
    """Our generator's arguments.

    Args:
        constructor: From ``generator_constructor``.
        config: Official arguments by name.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    values, arguments = constructor.values(config), constructor.read(config)
    resolution, z_dim, shared_dim = values["resolution"], values["dim_z"], values["shared_dim"]
    check_resolution(resolution, dict.fromkeys(GENERATOR_RESOLUTIONS))
    arguments["attention_resolutions"] = attention_from_string(values["G_attn"], generator_stages(resolution))
    arguments["shared_embedding_dim"] = (shared_dim if shared_dim > 0 else z_dim) if values["G_shared"] else None
    arguments["moving_variance"] = "biased" if values["mybn"] else "unbiased"
    if values["mybn"]:
        arguments["norm"] = "batch"  # the official code looks at mybn first
    return arguments


def discriminator_arguments(constructor: Constructor, config: Mapping[str, Any]) -> dict[str, Any]:
    """Our discriminator's arguments.

    Args:
        constructor: From ``discriminator_constructor``.
        config: Official arguments by name.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    arguments = constructor.read(config)
    resolution, attention = arguments["resolution"], arguments["attention_resolutions"]
    check_resolution(resolution, dict.fromkeys(DISCRIMINATOR_RESOLUTIONS))
    if resolution == 32:  # the official table calls the output of every block 16 x 16, though all but the first put out 8 x 8
        arguments["attention_resolutions"] = (16, 8) if attention_from_string(attention, [16]) else ()
    else:
        arguments["attention_resolutions"] = attention_from_string(attention, discriminator_stages(resolution))
    return arguments
