"""Find out whose layout a checkpoint is, with which options, and build and load its networks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert import SOURCES, get_source
from generative.convert.base import OfficialSource, load_official, show_names, split_by_module
from generative.convert.files.read import Checkpoint, NetworkPart
from generative.core.errors import UserError

# Official names of networks that sample, the averaged ones first: what their authors' figures are from.
AVERAGED = ("G_ema", "ema", "model_ema", "generator_ema", "denoiser_ema")
SAMPLING_NETWORKS = (*AVERAGED, "G", "generator", "model", "denoiser", "network", None)
DISCRIMINATORS = ("D", "discriminator")
GENERATORS = ("G_ema", "G", "generator", "generator_ema")
AUTOENCODER = "autoencoder"
"""Where a user's options of an autoencoder stand, whose file is given beside those of the network that it decodes for."""


@dataclass(frozen=True)
class Recognised:
    """A checkpoint whose layout is known.

    Attributes:
        source: The layout.
        state: Official tensors, keyed as ``load_official`` takes them.
        config: Official options, for ``source.build``.
        parts: The networks of the files that these are.
        autoencoder: Another, whose file was given too and whose network decodes what this one's makes.
    """

    source: OfficialSource
    state: dict[str, Tensor]
    config: dict[str, Any]
    parts: tuple[NetworkPart, ...] = ()
    autoencoder: Recognised | None = None

    def build(self) -> dict[str, ModelMixin]:
        """Build our networks and load them; the autoencoder is not among them.

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
    """Choose one of each network: files hold its raw weights and their average, under several names.

    Args:
        parts: All networks of a checkpoint.
        wanted: Official name of the one to take where there is a choice; None takes the averaged one.

    Returns:
        Those to convert, discriminators last, and those left out.

    Raises:
        UserError: If there is no such network, or it is not clear which one is meant.
    """
    names = ", ".join(dict.fromkeys(str(part.network) for part in parts))
    if wanted is not None and all(part.network != wanted for part in parts):
        raise UserError(f"there is no network '{wanted}' in the checkpoint; it has {names}")
    variants: dict[Any, list[NetworkPart]] = {}
    for part in parts:
        # Weights and their average have the same tensors, or names that say so.
        variants.setdefault(named_module(part) or frozenset(part.state), []).append(part)
    chosen = []
    for same in variants.values():
        order = (wanted, *SAMPLING_NETWORKS) if wanted is not None else SAMPLING_NETWORKS
        name = next((name for name in order if any(part.network == name for part in same)), None)
        mine = [part for part in same if part.network == name] or same
        if len(mine) > 1:
            both = " and ".join(map(str, mine[:2]))
            raise UserError(f"it is not clear which network is meant, {both} could be; give one file, or --network of {names}")
        chosen += mine
    chosen.sort(key=lambda part: part.network in DISCRIMINATORS)
    return chosen, [part for part in parts if part not in chosen]


def named_module(part: NetworkPart) -> str | None:
    """The module that the name of a network tells."""
    if part.network in DISCRIMINATORS:
        return "discriminator"
    return "generator" if part.network in GENERATORS else None


def arrangements(source: OfficialSource, parts: Sequence[NetworkPart]) -> Iterator[dict[str, Tensor]]:
    """Ways to key the tensors as ``load_official`` takes them, the most probable first.

    Args:
        source: Whose modules they may be.
        parts: One network, or several that are a module each.
    """
    states = [source.rekey(part.state) for part in parts]
    if len(parts) == 1 and any(key.startswith(f"{module}/") for module in source.modules for key in states[0]):
        yield states[0]
        return
    named = [module if (module := named_module(part)) in source.modules else None for part in parts]
    if len(parts) == 1 and named[0] is None:
        yield states[0]
    for order in permutations(source.modules, len(parts)):
        if all(name in (None, module) for name, module in zip(named, order, strict=True)):
            by_module = zip(order, states, strict=True)
            yield {f"{module}/{key}": value for module, state in by_module for key, value in state.items()}
    if len(parts) == 1 and named[0] is not None:
        yield states[0]


def recognise(
    checkpoint: Checkpoint, parts: Sequence[NetworkPart], source: str | None, options: Mapping[str, Any] | None
) -> Recognised:
    """Find the source of a checkpoint and its options.

    Args:
        checkpoint: What was read.
        parts: The networks to convert.
        source: Name of the source, None to find out.
        options: Official options that the user gives; they win over those that names and shapes tell. Where networks have
            options of their own, those without a network's name are of the one that has them.

    Raises:
        UserError: If no source knows the layout, or several do, or the files are of several models.
    """
    given = dict(options or {})
    found: list[Recognised] = []
    autoencoder: Recognised | None = None
    for mine, decoder in divisions(parts):
        found = [hit for name in candidates(source) if (hit := ask(get_source(name), mine)) is not None]
        if found:
            autoencoder = decoder
            break
    if not found and source is not None and given:
        mine, autoencoder = list(divisions(parts))[-1]
        found = [Recognised(get_source(source), best_arrangement(get_source(source), mine), {}, tuple(mine))]
    if not found:
        raise UserError(unknown_layout(parts, source))
    found = named_by_file(told_by_file(found)) if len(found) > 1 else found
    if len(found) > 1:
        names = ", ".join(hit.source.name for hit in found)
        raise UserError(f"the checkpoint may be of any of {names}; say which with --source")
    (hit,) = found
    for part in hit.parts:
        hit.source.check_class(part.class_name)
    if autoencoder is not None:
        config = merge(autoencoder.config, check_options(given.pop(AUTOENCODER, {})))
        autoencoder = Recognised(autoencoder.source, autoencoder.state, config, autoencoder.parts)
    config = state_options(hit.source, hit.config, checkpoint, hit.parts)
    return Recognised(hit.source, hit.state, merge(config, place(config, given)), hit.parts, autoencoder)


def told_by_file(found: Sequence[Recognised]) -> list[Recognised]:
    """Of several sources, the one that only the file's name can tell if it does, else the others; see ``file_names``."""
    hidden = [hit for hit in found if hit.source.file_names]
    named = [hit for hit in hidden if any(re.fullmatch(hit.source.file_names, part.path.name) for part in hit.parts)]
    return named or [hit for hit in found if hit not in hidden] or list(found)


def named_by_file(found: Sequence[Recognised]) -> list[Recognised]:
    """Of several sources of one layout, the one that the official file is named after, or the model by its training script.

    Such names are ``SiT-XL-2-256x256.pt`` and ``SiT-XL/2``; where none tells, all are returned.
    """

    def is_named(hit: Recognised) -> bool:
        names = (hit.parts[0].path.name, str(hit.parts[0].arguments.get("model", "")))
        return any(re.match(rf"{hit.source.name}[^a-z]", name.lower()) for name in names)

    named = [hit for hit in found if is_named(hit)]
    return named if len(named) == 1 else list(found)


def divisions(parts: Sequence[NetworkPart]) -> Iterator[tuple[list[NetworkPart], Recognised | None]]:
    """Ways to take several networks: all of one source; or one of them the autoencoder for the others.

    Then the same without discriminators that lie beside a network in its file: training checkpoints of tokenizers have them.

    Yields:
        The networks of one source, and the autoencoder.
    """
    lying = [part for part in parts if sum(other.path == part.path for other in parts) > 1 and part.network in DISCRIMINATORS]
    for taken in (list(parts), [part for part in parts if part not in lying]) if lying else (list(parts),):
        yield taken, None
        for part in taken if len(taken) > 1 else ():
            for name in candidates(None):
                source = get_source(name)
                hit = ask(source, [part]) if source.is_autoencoder else None
                if hit is not None:
                    yield [other for other in taken if other is not part], hit


def state_options(
    source: OfficialSource, config: dict[str, Any], checkpoint: Checkpoint, parts: Sequence[NetworkPart]
) -> dict[str, Any]:
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
        stated |= source.options_beside(part.beside)
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
    """Ask a source whether some networks are its own."""
    for state in arrangements(source, parts):
        config = read_config(source, state)
        if config is not None:
            for part in parts:
                config |= {name: part.arguments[name] for name in source.script_arguments if name in part.arguments}
            return Recognised(source, state, config, tuple(parts))
    return None


def read_config(source: OfficialSource, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """What a source recognises.

    Names of its layout over tensors whose shapes cannot be its own (a bias of two axes) trip a source up: then it is not.
    """
    try:
        return source.recognise(state)
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None


def best_arrangement(source: OfficialSource, parts: Sequence[NetworkPart]) -> dict[str, Tensor]:
    """The arrangement with most modules that a source recognises on their own; for tensors that it does not recognise together.

    Raises:
        UserError: If the source has fewer modules than there are networks.
    """

    def count(state: Mapping[str, Tensor]) -> int:
        known = 0
        for module, tensors in split_by_module(state).items():
            prefix = f"{module}/" if module else ""
            known += read_config(source, {f"{prefix}{key}": value for key, value in tensors.items()}) is not None
        return known

    states = list(arrangements(source, parts))
    if not states:
        raise UserError(f"{source.name} has the modules {', '.join(source.modules)}, got {len(parts)} networks; give one of each")
    return max(states, key=count) if len(parts) > 1 else states[0]


def is_like(stated: Any, inferred: Any) -> bool:
    """Whether a stated option can take the place of an inferred one: it is plain and of the same type.

    In the place of a float there may be a whole number, or None.
    """
    if stated is None:
        return type(inferred) is float
    if isinstance(stated, list) and isinstance(inferred, list):
        return all(isinstance(value, (int, float)) for value in stated)
    is_number = isinstance(stated, (int, float)) and not isinstance(stated, bool) and type(inferred) is float
    return is_number or (isinstance(stated, (bool, int, float, str)) and type(stated) is type(inferred))


def check_options(options: Any) -> Mapping[str, Any]:
    """Options of an autoencoder, which must be a mapping.

    Raises:
        UserError: If they are none.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"--config has {AUTOENCODER}={options!r}; give its official options by name")
    return options


def place(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A user's options by network; those without a network's name go to the one that has an option of that name, if one has."""
    if not config or not all(isinstance(inner, Mapping) for inner in config.values()):
        return dict(options)
    placed: dict[str, Any] = {}
    for name, value in options.items():
        homes = [module for module, inner in config.items() if name in inner]
        is_bare = name not in config and len(homes) == 1
        placed = merge(placed, {homes[0]: {name: value}} if is_bare else {name: value})
    return placed


def merge(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options laid over others, dictionaries within them too."""
    merged = dict(config)
    for name, value in options.items():
        inner = merged.get(name)
        merged[name] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def unknown_layout(parts: Sequence[NetworkPart], source: str | None) -> str:
    """One sentence on a checkpoint that no source knows: what was found, and what is known."""
    if source is None and len(parts) > 1:
        own = {str(part): [name for name in candidates(None) if ask(get_source(name), [part]) is not None] for part in parts}
        if all(own.values()):
            told = ", ".join(f"{part} is of {' or '.join(names)}" for part, names in own.items())
            return f"the networks are not of one model: {told}; give those of one model, one of each"
        parts = [part for part in parts if not own[str(part)]]
    found = "; ".join(f"{part}: {len(part.state)} tensors, first {show_names(list(part.state))}" for part in parts)
    if source is not None:
        return f"the checkpoint is not of the layout of {source} ({found}); give its official options with --config if it is"
    return f"no source of official checkpoints knows this layout ({found}); known sources: {', '.join(SOURCES)}"
