"""Checkpoints of the BigGAN authors' PyTorch code (ajbrock/BigGAN-PyTorch) whose generator is SAGAN's."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource
from generative.core.errors import UserError
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator, discriminator_stages, generator_stages

# Options of the official constructors that only train: learning rates and so on build no layer.
TRAINING_OPTIONS = ("lr", "B1", "B2")
SHARED_TRAINING_OPTIONS = ("adam_eps", "skip_init", "no_optim")
# Half precision of the official code is by hand; ours is the trainer's, so a network that asks for it is not the same one.
HALF_PRECISION_OPTIONS = ("fp16", "mixed_precision")
RELU_NAMES = ("relu", "inplace_relu", "ir")
INIT_NAMES = {"xavier": "xavier", "glorot": "xavier", "ortho": "orthogonal", "N02": "normal"}
NORM_STYLES = {"bn": "batch", "in": "instance", "nonorm": "none"}

# Official name -> ours, tried in order on keys without their last part. The innermost parts come first.
MODULE_NAMES: dict[str, list[tuple[str, str]]] = {
    "generator": [
        (r"^blocks\.(\d+)\.0\.bn([12])\.(gain|bias)$", r"blocks.\1.norm\2.\3"),
        (r"^blocks\.(\d+)\.0\.bn([12])(\.bn)?$", r"blocks.\1.norm\2.norm"),
        (r"^blocks\.(\d+)\.0\.conv([12])$", r"blocks.\1.conv\2"),
        (r"^output_layer\.0(\.bn)?$", r"norm_out"),
        (r"^output_layer\.2$", r"conv_out"),
        (r"^shared$", r"class_embedding"),
    ],
    "discriminator": [
        (r"^blocks\.(\d+)\.0\.conv([12])$", r"blocks.\1.conv\2"),
        (r"^embed$", r"class_embedding"),
    ],
}
SHARED_MODULE_NAMES = [
    (r"^linear$", r"linear"),
    (r"^blocks\.(\d+)\.0\.conv_sc$", r"blocks.\1.shortcut"),
    (r"^blocks\.(\d+)\.1$", r"attentions.\1"),
    (r"^blocks\.(\d+)\.1\.theta$", r"attentions.\1.query"),
    (r"^blocks\.(\d+)\.1\.phi$", r"attentions.\1.key"),
    (r"^blocks\.(\d+)\.1\.g$", r"attentions.\1.value"),
    (r"^blocks\.(\d+)\.1\.o$", r"attentions.\1.out"),
]
TENSOR_NAMES = {
    "weight": "weight",
    "bias": "bias",
    "gain": "gain",
    "gamma": "gamma",
    "stored_mean": "running_mean",
    "stored_var": "running_var",
}
SPECTRAL_TENSOR = re.compile(r"^(u|sv)(\d+)$")
STANDING_COUNTER = "accumulation_counter"


class OfficialOptions:
    """Arguments of an official constructor that must all be consumed.

    Args:
        module: ``generator`` or ``discriminator``, for messages.
        options: Arguments by name.
    """

    def __init__(self, module: str, options: dict[str, Any]) -> None:
        self.module = module
        self.options = dict(options)

    def take(self, name: str, default: Any) -> Any:
        """Remove and return an option, or the official default."""
        return self.options.pop(name, default)

    def choose(self, name: str, default: Any, choices: dict[Any, Any]) -> Any:
        """Take an option and translate it.

        Raises:
            UserError: If its value is not among the choices.
        """
        value = self.take(name, default)
        if not isinstance(value, (str, bool, int, float, type(None))) or value not in choices:
            known = ", ".join(map(repr, choices))
            raise UserError(f"{self.module} option {name}={value!r} of BigGAN-PyTorch is not supported here; supported: {known}")
        return choices[value]

    def drop_training_options(self, prefix: str) -> None:
        """Consume the options that build no layer; half precision must be off."""
        for name in [*(f"{prefix}_{option}" for option in TRAINING_OPTIONS), *SHARED_TRAINING_OPTIONS]:
            self.take(name, None)
        for option in HALF_PRECISION_OPTIONS:
            self.choose(f"{prefix}_{option}", False, {False: None})
        self.take(f"{prefix}_kernel_size", 3)  # the official code stores it and builds 3x3 convolutions all the same

    def finish(self) -> None:
        """Raise ``UserError`` if an option is left over."""
        if self.options:
            raise UserError(f"{self.module} option {next(iter(self.options))!r} of BigGAN-PyTorch is unknown here")


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
        "num_singular_values": options.take(f"num_{prefix}_SVs", 1),
        "num_power_iterations": options.take(f"num_{prefix}_SV_itrs", 1),
        "weight_init": options.choose(f"{prefix}_init", "ortho", INIT_NAMES),
    }


def build_generator(config: dict[str, Any]) -> SAGANGenerator:
    """Build our generator from the official ``Generator``'s arguments.

    Raises:
        UserError: If an option is unknown, or one that SAGAN has not (``hier``).
    """
    options = OfficialOptions("generator", config)
    options.drop_training_options("G")
    options.choose("hier", False, {False: None})  # hierarchical noise is BigGAN's
    # Outside multi-GPU training, eval mode included, the official code adds the gain in this mode where it should multiply.
    options.choose("cross_replica", False, {False: None})
    options.choose("G_activation", "relu", dict.fromkeys(RELU_NAMES))
    resolution = options.take("resolution", 128)
    z_dim = options.take("dim_z", 128)
    is_shared = options.choose("G_shared", True, {True: True, False: False})
    shared_dim = options.take("shared_dim", 0)
    has_own_norm = options.choose("mybn", False, {False: False, True: True})
    norm = options.choose("norm_style", "bn", NORM_STYLES)
    arguments = {
        "resolution": resolution,
        "channels": options.take("G_ch", 64),
        "z_dim": z_dim,
        "num_classes": options.take("n_classes", 1000),
        "attention_resolutions": attention_from_string(options.take("G_attn", "64"), generator_stages(resolution)),
        "bottom_width": options.take("bottom_width", 4),
        "shared_embedding_dim": (shared_dim if shared_dim > 0 else z_dim) if is_shared else None,
        "norm": "batch" if has_own_norm else norm,  # the official code looks at mybn first
        "moving_variance": "biased" if has_own_norm else "unbiased",
        "batch_norm_eps": options.take("BN_eps", 1e-5),
        "spectral_norm": options.choose("G_param", "SN", {"SN": True, "None": False, None: False}),
        **spectral_options(options, "G"),
    }
    options.finish()
    return SAGANGenerator(**arguments)


def build_discriminator(config: dict[str, Any]) -> SAGANDiscriminator:
    """Build our discriminator from the official ``Discriminator``'s arguments.

    Raises:
        UserError: If an option is unknown or unsupported.
    """
    options = OfficialOptions("discriminator", config)
    options.drop_training_options("D")
    options.choose("D_activation", "relu", dict.fromkeys(RELU_NAMES))
    options.choose("D_param", "SN", {"SN": None})
    resolution = options.take("resolution", 128)
    attention = options.take("D_attn", "64")
    attended: tuple[int, ...]
    if resolution == 32:  # the official table calls the output of every block 16 x 16, though all but the first put out 8 x 8
        attended = (16, 8) if attention_from_string(attention, [16]) else ()
    else:
        attended = attention_from_string(attention, discriminator_stages(resolution))
    arguments = {
        "resolution": resolution,
        "channels": options.take("D_ch", 64),
        "num_classes": options.take("n_classes", 1000),
        "attention_resolutions": attended,
        "wide": options.choose("D_wide", True, {True: True, False: False}),
        "output_dim": options.take("output_dim", 1),
        **spectral_options(options, "D"),
    }
    options.finish()
    return SAGANDiscriminator(**arguments)


def rename_module(module: str, path: str) -> str | None:
    """Our name for an official submodule, None if it has none."""
    for pattern, replacement in MODULE_NAMES[module] + SHARED_MODULE_NAMES:
        if re.match(pattern, path):
            return re.sub(pattern, replacement, path)
    return None


def our_key(module: str, key: str) -> str | None:
    """Our name for an official parameter or buffer (spectral vectors: for the stack they go into), None if it has none."""
    path, _, tensor = key.rpartition(".")
    ours = rename_module(module, path)
    if ours is None:
        return None
    spectral = SPECTRAL_TENSOR.match(tensor)
    if spectral:
        return f"{ours}.spectral_norm.{'u' if spectral[1] == 'u' else 'singular_values'}"
    return f"{ours}.{TENSOR_NAMES[tensor]}" if tensor in TENSOR_NAMES else None


class SAGANSource(OfficialSource):
    """SAGAN as ``BigGAN.py`` of BigGAN-PyTorch builds it, generator and discriminator."""

    name = "sagan"
    repository = "ajbrock/BigGAN-PyTorch"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official constructor arguments.

        Args:
            config: ``{"generator": {...}, "discriminator": {...}}``, either of which may be missing.

        Returns:
            Networks by the same names.

        Raises:
            UserError: If a module or option is unknown or unsupported.
        """
        builders = {"generator": build_generator, "discriminator": build_discriminator}
        unknown = [module for module in config if module not in builders]
        if unknown or not config:
            raise UserError(f"sagan has the modules generator and discriminator, got {unknown or 'none'}")
        return {module: builders[module](options) for module, options in config.items()}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict's tensors.

        Args:
            module: ``generator`` or ``discriminator``.
            state: Official tensors by name.
            network: Our network, from ``build``.

        Returns:
            Our state dict.

        Raises:
            UserError: If a key is unknown, or the batch norm holds standing sums.
        """
        if module not in MODULE_NAMES:
            raise UserError(f"sagan has the modules generator and discriminator, got {module!r}")
        converted: dict[str, Tensor] = {}
        stacks: dict[str, dict[int, Tensor]] = defaultdict(dict)
        unknown = []
        for key, value in state.items():
            tensor = key.rpartition(".")[2]
            name = our_key(module, key)
            spectral = SPECTRAL_TENSOR.match(tensor)
            if tensor == STANDING_COUNTER and rename_module(module, key.rpartition(".")[0]):
                if value.any():
                    raise UserError(
                        f"'{key}' is not zero: the checkpoint holds standing sums, save it without --accumulate_stats"
                    )
            elif name is None:
                unknown.append(key)
            elif spectral:
                stacks[name][int(spectral[2])] = value.reshape(-1)
            else:
                converted[name] = value
        if unknown:
            raise UserError(f"{module} of sagan has no place for the official keys {', '.join(sorted(unknown)[:5])}")
        for name, parts in stacks.items():
            values = [parts[index] for index in sorted(parts)]
            converted[name] = torch.cat(values) if name.endswith("singular_values") else torch.stack(values)
        return converted
