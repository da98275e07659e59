"""Networks of a TensorFlow checkpoint: variables by the attributes that lead to them, sorted by the network that has them."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from generative.convert.files.tensor_bundle import TensorBundle
from generative.core.errors import UserError

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""What ``tf.train.Checkpoint`` puts behind the path of a variable."""
SLOT = "/.OPTIMIZER_SLOT/"
"""What is within the path of an optimizer's variable for another."""
OPTIMIZER = "optimizer"
AVERAGE = "_ema"
"""What the attribute of an averaged network ends with (google-research/pix2seq)."""
ESCAPED = re.compile(r"\.([.S])")

Attributes = tuple[str, ...]


def attributes(key: str) -> Attributes:
    """Attributes that lead to a variable; within one, a slash is written ``.S`` and a dot ``..``."""
    return tuple(ESCAPED.sub(lambda match: "/" if match[1] == "S" else ".", part) for part in key.removesuffix(VALUE).split("/"))


def network_paths(paths: list[Attributes]) -> list[Attributes]:
    """What leads to the networks: a network and its average where there are such pairs, else the root's objects.

    Args:
        paths: Attributes that lead to each variable.
    """
    objects = dict.fromkeys(path[:length] for path in paths for length in range(1, len(path)))
    averages = [path for path in objects if path[-1].endswith(AVERAGE)]
    raw = {path: (*path[:-1], path[-1].removesuffix(AVERAGE)) for path in averages}
    pairs = [path for path in averages if raw[path] in objects]
    if pairs:
        return [network for path in pairs for network in (raw[path], path)]
    return [path for path in objects if len(path) == 1 and path[0] != OPTIMIZER]


def read_tensorflow(path: Path) -> list[tuple[str | None, dict[str, Tensor]]]:
    """Read the networks of a checkpoint.

    Args:
        path: The index, see ``TensorBundle``.

    Returns:
        Each network's attribute and its tensors by the attributes that lead to them from there, joined by slashes; optimizers and
        counters are left out. Of a checkpoint by names of variables, which has no such attributes, one network without a name.

    Raises:
        UserError: If the checkpoint is damaged or holds no network.
    """
    bundle = TensorBundle(path)
    variables = {attributes(key): key for key in bundle.entries if key.endswith(VALUE) and SLOT not in key}
    if not variables:
        found: list[tuple[str | None, dict[str, str]]] = [
            (None, {key: key for key in bundle.entries if not bundle.is_counter(key)})
        ]
    else:
        found = [
            (owner[-1], {"/".join(path[len(owner) :]): key for path, key in variables.items() if path[: len(owner)] == owner})
            for owner in network_paths(list(variables))
        ]
    if not any(keys for _, keys in found):
        raise UserError(f"checkpoint '{path}' holds no network, only counters, an optimizer or texts; give another")
    return [(name, {ours: bundle.read(key) for ours, key in keys.items()}) for name, keys in found]
