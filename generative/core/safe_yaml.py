"""YAML from strangers: bounded before anything is built from it, as a kilobyte can unfold to more than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 100_000
"""Values in a document, those behind aliases counted wherever they are used; a configuration has some hundreds."""

MAX_DEPTH = 64
"""Collections within one another; a configuration has about ten."""


class UnsafeYAMLError(yaml.YAMLError):
    """The document holds itself, or is too deep or too large once its aliases are followed."""


def load_yaml(text: str) -> Any:
    """Read YAML of plain values.

    Raises:
        yaml.YAMLError: If it is damaged.
        UnsafeYAMLError: If it is out of bounds.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        measure(node, {}, set())
        return yaml.safe_load(text)
    except RecursionError as error:
        raise UnsafeYAMLError(f"it nests more than {MAX_DEPTH} levels") from error
    except (ValueError, TypeError) as error:
        # Of a number or date that is none, such as 2024-13-99, or a key that cannot be one.
        raise yaml.YAMLError(str(error)) from error


def measure(node: yaml.Node, known: dict[int, tuple[int, int]], inside: set[int]) -> tuple[int, int]:
    """Number of values and depth of a node with its aliases followed.

    Args:
        node: The node.
        known: Results by ``id(node)``, so that the time is that of the text and not of what it unfolds to.
        inside: Nodes around this one.
    """
    if id(node) in known:
        return known[id(node)]
    if id(node) in inside:
        raise UnsafeYAMLError("it holds an alias of itself")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    inside.add(id(node))
    sizes = [measure(child, known, inside) for child in children]
    inside.remove(id(node))
    count, depth = 1 + sum(size[0] for size in sizes), 1 + max((size[1] for size in sizes), default=0)
    if count > MAX_NODES:
        raise UnsafeYAMLError(f"it unfolds to more than {MAX_NODES:,} values")
    if depth > MAX_DEPTH:
        raise UnsafeYAMLError(f"it nests more than {MAX_DEPTH} levels")
    known[id(node)] = (count, depth)
    return count, depth
