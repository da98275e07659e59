"""Names of parameters and buffers in BigGAN-PyTorch's checkpoints, translated to ours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.convert.base import UnknownKeysError
from generative.core.errors import UserError

Names = Sequence[tuple[str, str]]
"""Pattern of an official submodule's path -> ours; the first that matches counts."""

# Submodules of BigGAN.py, whose blocks have two convolutions; the generator's names are BigGANdeep.py's too, whose have four.
MODULE_NAMES: Mapping[str, Names] = {
    "generator": [
        (r"^blocks\.(\d+)\.0\.bn([1-4])\.(gain|bias)$", r"blocks.\1.norm\2.\3"),
        (r"^blocks\.(\d+)\.0\.bn([1-4])(\.bn)?$", r"blocks.\1.norm\2.norm"),
        (r"^blocks\.(\d+)\.0\.conv([1-4])$", r"blocks.\1.conv\2"),
        (r"^output_layer\.0(\.bn)?$", r"norm_out"),
        (r"^output_layer\.2$", r"conv_out"),
        (r"^shared$", r"class_embedding"),
    ],
    "discriminator": [
        (r"^blocks\.(\d+)\.0\.conv([12])$", r"blocks.\1.conv\2"),
        (r"^embed$", r"class_embedding"),
    ],
}
# Submodules of both networks. Attention stands behind the blocks of its entry: at 1 in BigGAN.py, at 1 or 2 in BigGANdeep.py.
SHARED_MODULE_NAMES: Names = [
    (r"^linear$", r"linear"),
    (r"^blocks\.(\d+)\.0\.conv_sc$", r"blocks.\1.shortcut"),
    (r"^blocks\.(\d+)\.[1-9]\d*$", r"attentions.\1"),
    (r"^blocks\.(\d+)\.[1-9]\d*\.theta$", r"attentions.\1.query"),
    (r"^blocks\.(\d+)\.[1-9]\d*\.phi$", r"attentions.\1.key"),
    (r"^blocks\.(\d+)\.[1-9]\d*\.g$", r"attentions.\1.value"),
    (r"^blocks\.(\d+)\.[1-9]\d*\.o$", r"attentions.\1.out"),
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


@dataclass(frozen=True)
class KeyMap:
    """Official names of one model's networks, and ours.

    Attributes:
        module_names: Submodules of ``generator`` and ``discriminator``, which win over those that all models share.
    """

    module_names: Mapping[str, Names]

    def rename_module(self, module: str, path: str) -> str | None:
        """Our name for an official submodule, None if it has none."""
        for pattern, replacement in [*self.module_names[module], *SHARED_MODULE_NAMES]:
            if re.match(pattern, path):
                return re.sub(pattern, replacement, path)
        return None

    def our_key(self, module: str, key: str) -> str | None:
        """Our name for an official parameter or buffer (spectral vectors: for the stack they go into), None if it has none."""
        path, _, tensor = key.rpartition(".")
        ours = self.rename_module(module, path)
        if ours is None:
            return None
        spectral = SPECTRAL_TENSOR.match(tensor)
        if spectral:
            return f"{ours}.spectral_norm.{'u' if spectral[1] == 'u' else 'singular_values'}"
        return f"{ours}.{TENSOR_NAMES[tensor]}" if tensor in TENSOR_NAMES else None

    def convert(self, model: str, module: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a network's tensors, and stack the vectors of each spectral norm.

        Args:
            model: Name of the source, for messages.
            module: ``generator`` or ``discriminator``.
            state: Official tensors by name.

        Returns:
            Our state dict.

        Raises:
            UserError: If there is no such module, a key is unknown, or the batch norm holds standing sums.
        """
        if module not in self.module_names:
            raise UserError(f"{model} has the modules {' and '.join(self.module_names)}, got {module!r}")
        converted: dict[str, Tensor] = {}
        stacks: dict[str, dict[int, Tensor]] = defaultdict(dict)
        unknown = []
        for key, value in state.items():
            path, _, tensor = key.rpartition(".")
            name = self.our_key(module, key)
            spectral = SPECTRAL_TENSOR.match(tensor)
            if tensor == STANDING_COUNTER and self.rename_module(module, path):
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
            raise UnknownKeysError(f"{module} of {model}", unknown)
        for name, parts in stacks.items():
            values = [parts[index] for index in sorted(parts)]
            converted[name] = torch.cat(values) if name.endswith("singular_values") else torch.stack(values)
        return converted
