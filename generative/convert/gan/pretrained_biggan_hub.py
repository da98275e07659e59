"""TF-Hub modules of BigGAN-deep in the Hugging Face layout, renamed as convert_tf_to_pytorch.py of that repository does.

A module is given as a dump of its variables by TensorFlow name and of its graph's batch-norm tables,
``module_apply_default/stack_N``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.keys import names_of

PUBLISHED_ATTENTION_POSITION = 8  # in all three published generators
NORMS_PER_BLOCK = 4
KERNEL_AXES = 4  # height, width, in, out
EMA = "ema_0.9999"  # variables of the hub module end in it where they are averages
# TF-Hub scope -> Hugging Face submodule, blocks numbered without the attention; see ``torch_path``.
HUB_SCOPES = (
    (r"^linear$", r"embeddings"),
    (r"^Generator/GenZ/G_linear$", r"generator.gen_z"),
    (r"^Generator/conv_to_rgb$", r"generator.conv_to_rgb"),
    (r"^Generator/BatchNorm$", r"generator.bn"),
    (r"^Generator/attention$", r"attention"),
    (r"^Generator/attention/(g|o_conv|phi|theta)$", r"attention.snconv1x1_\1"),
    (r"^Generator/GBlock_(\d+)/BatchNorm_(\d)/(scale|offset)$", r"block.\1.bn_\2.\3"),
    (r"^Generator/GBlock_(\d+)/conv(\d)$", r"block.\1.conv_\2"),
)
HUB_TENSORS = {f"w/{EMA}": "weight_orig", f"b/{EMA}": "bias", "u0": "weight_u"}
HUB_STATISTICS = re.compile(r"^module_apply_default/stack_(\d+)(?::0)?$")
HUB_STATISTICS_DIGITS = "1368"  # the stacks that hold means and variances in turn are 1, 3, 6, 8, 11, 13, ...


Shapes = tuple[list[tuple[int, int]], int, tuple[int, int], tuple[int, int]]
"""Widths in and out of each block; number of the attention; (classes, width of z); (statistics, width at the end)."""


def attention_position(network: ModelMixin) -> int | None:
    """Number of the attention among the official layers, None if there is none."""
    after = network.config.attention_after
    return after[0] + 1 if after else None


def torch_path(path: str, position: int | None) -> str:
    """Full Hugging Face name of ``block.N...`` (numbered without the attention) and ``attention...``."""
    block = re.match(r"^block\.(\d+)", path)
    if block:
        index = int(block[1])
        return f"generator.layers.{index + (position is not None and index >= position)}{path[block.end() :]}"
    return re.sub(r"^attention", f"generator.layers.{position}", path)


def hub_key(key: str, position: int | None, num_blocks: int) -> str | None:
    """Hugging Face name for a TF-Hub variable or batch-norm table, None if it has none."""
    statistics = HUB_STATISTICS.match(key)
    if statistics:
        tens, digit = statistics[1][:-1] or "0", HUB_STATISTICS_DIGITS.find(statistics[1][-1])
        norm, is_variance = divmod(len(HUB_STATISTICS_DIGITS) * int(tens) + digit, 2)
        block, number = divmod(norm, NORMS_PER_BLOCK)
        path = "generator.bn" if block == num_blocks else f"block.{block}.bn_{number}"
        tensor = "running_vars" if is_variance else "running_means"
        return f"{torch_path(path, position)}.{tensor}" if digit >= 0 and norm <= num_blocks * NORMS_PER_BLOCK else None
    if key.startswith("Generator/attention/") and position is None:
        return None
    special = {
        f"linear/w/{EMA}": "embeddings.weight",
        f"Generator/attention/gamma/{EMA}": f"generator.layers.{position}.gamma",
        f"Generator/BatchNorm/scale/{EMA}": "generator.bn.weight",
        f"Generator/BatchNorm/offset/{EMA}": "generator.bn.bias",
    }
    if key in special:
        return special[key]
    tensor = next((name for name in HUB_TENSORS if key.endswith(f"/{name}")), "")
    # TensorFlow leaves the number off the first scope of a name.
    scope = re.sub(r"/(GBlock|BatchNorm)(?=/.*/)", r"/\1_0", key).removesuffix(f"/{tensor}")
    for pattern, replacement in HUB_SCOPES:
        if tensor and re.match(pattern, scope):
            return f"{torch_path(re.sub(pattern, replacement, scope), position)}.{HUB_TENSORS[tensor]}"
    return None


def from_hub(state: Mapping[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
    """TF-Hub tensors in the Hugging Face layout, right singular vectors included.

    Args:
        state: Tensors by TensorFlow name: kernels (height, width, in, out), matrices (in, out), other ones with or
            without axes of 1.
        network: Our generator.

    Raises:
        UnknownKeysError: If a name is unknown.
    """
    position, num_blocks = attention_position(network), len(network.blocks)
    rename = partial(hub_key, position=position, num_blocks=num_blocks)
    names = names_of("the TF-Hub layout of pretrained-biggan", state, rename)
    converted: dict[str, Tensor] = {}
    for key, name in names.items():
        value = state[key]
        if name.endswith(("running_means", "running_vars")):
            converted[name] = value
        elif name.endswith(("weight_orig", "embeddings.weight")):
            converted[name] = value.permute(3, 2, 0, 1) if value.ndim == KERNEL_AXES else value.T
        else:
            converted[name] = value.reshape(-1)
    # One power iteration, as the official script makes of the stored left vectors.
    for name in [name for name in converted if name.endswith("weight_u")]:
        matrix = converted.get(name.replace("weight_u", "weight_orig"))
        if matrix is not None:
            eps = network.config.spectral_norm_eps
            v = F.normalize(converted[name] @ matrix.flatten(1), dim=0, eps=eps)
            converted[name.replace("weight_u", "weight_v")] = v
            converted[name] = F.normalize(matrix.flatten(1) @ v, dim=0, eps=eps)
    return converted


def is_hub(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint is named as TensorFlow does."""
    return any(key.startswith("Generator/") for key in state)


def hub_shapes(state: Mapping[str, Tensor]) -> Shapes | None:
    """What the shapes of a TF-Hub dump tell, None if it is none. Where the attention stands does not show; it is as published."""
    tables = [value for key, value in state.items() if HUB_STATISTICS.match(key)]
    if f"linear/w/{EMA}" not in state or not tables:
        return None
    widths: list[tuple[int, int]] = []
    while True:
        path = f"Generator/GBlock_{len(widths)}" if widths else "Generator/GBlock"
        if f"{path}/conv0/w/{EMA}" not in state or f"{path}/conv3/w/{EMA}" not in state:
            break
        widths.append((state[f"{path}/conv0/w/{EMA}"].shape[2], state[f"{path}/conv3/w/{EMA}"].shape[3]))
    theta = state.get(f"Generator/attention/theta/w/{EMA}")
    fitting = [] if theta is None else [i for i, (width_in, _) in enumerate(widths) if width_in == theta.shape[2]]
    attended = PUBLISHED_ATTENTION_POSITION if PUBLISHED_ATTENTION_POSITION in fitting else next(iter(fitting), -1)
    channels = widths[-1][1] if widths else 0
    num_classes, z_dim = state[f"linear/w/{EMA}"].shape
    return widths, attended, (num_classes, z_dim), (tables[0].shape[0], channels)
