"""Find out whose layout a checkpoint is, with which options, and build and load its networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert import SOURCES, get_source
from generative.convert.base import OfficialSource, load_official, show_names
from generative.convert.read import Checkpoint, NetworkPart
from generative.core.errors import UserError

# Official names of networks that sample, the averaged ones first: what their authors' figures are from.
SAMPLING_NETWORKS = ("G_ema", "ema", "generator_ema", "G", "generator", "model", "network", None)
DISCRIMINATORS = ("D", "discriminator")
GENERATORS = ("G_ema", "G", "generator", "generator_ema")


@dataclass(frozen=True)
class Recognised:
    """A checkpoint whose layout is known.

    Attributes:
        source: The layout.
        state: Official tensors, keyed as ``load_official`` takes them.
        config: Official options, for ``source.build``.
    """

    source: OfficialSource
    state: dict[str, Tensor]
    config: dict[str, Any]

    def build(self) -> dict[str, ModelMixin]:
        """Build our networks and load them.

        Raises:
            MismatchError: If a tensor is missing, left over or of another shape; it lists every one of them.
            UserError: If an option is not supported here.
        """
        networks = self.source.build(self.config)
        load_official(self.source, networks, self.state)
        for network in networks.values():
            network.eval()
        return networks


def choose_parts(parts: Sequence[NetworkPart], wanted: str | None) -> tuple[list[NetworkPart], list[NetworkPart]]:
    """Choose the network that samples, and its discriminator if there is one.

    Args:
        parts: All networks of a checkpoint.
        wanted: Official name of the one that samples; None takes the averaged one where there are several.

    Returns:
        Those to convert, and those left out.

    Raises:
        UserError: If there is no such network, or it is not clear which one is meant.
    """
    names = ", ".join(dict.fromkeys(str(part.network) for part in parts))
    judges = [part for part in parts if part.network in DISCRIMINATORS and part.network != wanted]
    if wanted is not None:
        mine = [part for part in parts if part.network == wanted]
        if not mine:
            raise UserError(f"there is no network '{wanted}' in the checkpoint; it has {names}")
    else:
        known = [name for name in SAMPLING_NETWORKS if any(part.network == name for part in parts)]
        mine = [part for part in parts if part.network == known[0]] if known else [p for p in parts if p not in judges]
    for same in (mine, judges):
        if len(same) > 1:
            both = " and ".join(map(str, same[:2]))
            raise UserError(f"it is not clear which network is meant, {both} could be; give one file, or --network of {names}")
    chosen = [*mine, *judges]
    return chosen, [part for part in parts if part not in chosen]


def arrangements(parts: Sequence[NetworkPart]) -> Iterator[dict[str, Tensor]]:
    """Ways to key the tensors as ``load_official`` takes them, the likeliest first.

    Args:
        parts: One network, or a network and its discriminator.
    """
    modules = ["discriminator" if part.network in DISCRIMINATORS else "generator" for part in parts]
    by_module = {
        f"{module}/{key}": value for module, part in zip(modules, parts, strict=True) for key, value in part.state.items()
    }
    if len(parts) > 1:
        yield by_module
        return
    bare = dict(parts[0].state)
    named = parts[0].network in GENERATORS or parts[0].network in DISCRIMINATORS
    yield from (by_module, bare) if named else (bare, by_module)
    if not named:
        yield {f"discriminator/{key}": value for key, value in bare.items()}


def recognise(
    checkpoint: Checkpoint, parts: Sequence[NetworkPart], source: str | None, options: Mapping[str, Any] | None
) -> Recognised:
    """Find the source of a checkpoint and its options.

    Args:
        checkpoint: What was read.
        parts: The networks to convert.
        source: Name of the source, None to find out.
        options: Official options that the user gives; they win over those that names and shapes tell.

    Raises:
        UserError: If no source knows the layout, or several do.
    """
    found = [hit for name in candidates(source) if (hit := ask(get_source(name), parts)) is not None]
    if not found and source is not None and options:
        found = [Recognised(get_source(source), next(arrangements(parts)), {})]
    if not found:
        raise UserError(unknown_layout(parts, source))
    if len(found) > 1:
        names = ", ".join(hit.source.name for hit in found)
        raise UserError(f"the checkpoint may be of any of {names}; say which with --source")
    return Recognised(found[0].source, found[0].state, merge(state_options(found[0].config, checkpoint, parts), options or {}))


def state_options(config: dict[str, Any], checkpoint: Checkpoint, parts: Sequence[NetworkPart]) -> dict[str, Any]:
    """Inferred options with those that the checkpoint states itself in their place, each network's own."""
    modules = {name: value for name, value in config.items() if isinstance(value, dict)}
    stated = dict(config)
    for part in parts:
        said = {**checkpoint.options, **part.options}
        mine = {name for name in modules if name.startswith("discriminator") == (part.network in DISCRIMINATORS)}
        for name in mine:
            stated[name] = modules[name] | {key: value for key, value in said.items() if is_like(value, modules[name].get(key))}
        if not modules:
            stated |= {key: value for key, value in said.items() if is_like(value, config.get(key))}
    return stated


def candidates(source: str | None) -> list[str]:
    """Names of the sources to ask; two names of one class are asked once."""
    if source is not None:
        return [source]
    firsts: dict[tuple[str, str], str] = {}
    for name, target in SOURCES.items():
        firsts.setdefault(target, name)
    return list(firsts.values())


def ask(source: OfficialSource, parts: Sequence[NetworkPart]) -> Recognised | None:
    """Ask a source whether a checkpoint is its own.

    Names of its layout over tensors whose shapes cannot be its own (a bias of two axes) trip a source up: then it is not.
    """
    for state in arrangements(parts):
        try:
            config = source.recognise(state)
        except UserError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue
        if config is not None:
            return Recognised(source, state, config)
    return None


def is_like(stated: Any, inferred: Any) -> bool:
    """Whether a stated option can take the place of an inferred one: it is plain and of the same type."""
    return isinstance(stated, (bool, int, float, str)) and type(stated) is type(inferred)


def merge(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options laid over others, dictionaries within them too."""
    merged = dict(config)
    for name, value in options.items():
        inner = merged.get(name)
        merged[name] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def unknown_layout(parts: Sequence[NetworkPart], source: str | None) -> str:
    """One sentence on a checkpoint that no source knows: what was found, and what is known."""
    found = "; ".join(f"{part}: {len(part.state)} tensors, first {show_names(list(part.state))}" for part in parts)
    if source is not None:
        return f"the checkpoint is not of the layout of {source} ({found}); give its official options with --config if it is"
    return f"no source of official checkpoints knows this layout ({found}); known sources: {', '.join(SOURCES)}"
