"""What a source of official checkpoints must say: how its options and its tensors map to ours."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline

MAX_NAMES_SHOWN = 5
"""Names listed in a message before the rest is only counted."""


class UnknownKeysError(UserError):
    """Official tensors that a source has no place for.

    Args:
        owner: Whose layout it is, for example ``generator of sagan``.
        keys: All of them.
    """

    def __init__(self, owner: str, keys: Iterable[str]) -> None:
        self.keys = sorted(keys)
        super().__init__(f"{owner} has no place for the official keys {show_names(self.keys)}")


class MismatchError(UserError):
    """A checkpoint that does not fit the network.

    Args:
        sentence: What is wrong, in one sentence.
        problems: One line for each key that is missing, unknown or of another shape; all of them.
    """

    def __init__(self, sentence: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(sentence)


class OfficialSource(abc.ABC):
    """One official checkpoint layout.

    Attributes:
        name: Short name, for example ``dit``.
        repository: Where the layout comes from, for example ``facebookresearch/DiT``.
        modules: Names of the networks that its authors keep in files of their own, as ``build`` calls them.
        is_autoencoder: Whether its network decodes what other sources' networks make, and its file may be given beside theirs.
        script_arguments: Arguments of its training script that are options of ``build`` and no tensor tells.
        autoencoder_file: Official file of such an autoencoder, where its networks need one and one is known here.
        file_names: Regular expression of its authors' file names, where its tensors are another source's too: without a source
            given, a file is of this one if it is named so, and else of the other.
    """

    name: str
    repository: str
    modules: tuple[str, ...] = ("generator", "discriminator")
    is_autoencoder: bool = False
    autoencoder_file: str = ""
    file_names: str = ""
    script_arguments: tuple[str, ...] = ()

    @abc.abstractmethod
    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from the official constructor's arguments.

        Args:
            config: Official arguments by name; every one is consumed.

        Returns:
            Networks by module name, ``model`` where there is but one.

        Raises:
            UserError: If an option is unknown or its value has no equal here.
        """

    @abc.abstractmethod
    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict.

        Args:
            module: Name of the module as in ``build``.
            state: Official tensors by key; every one is accounted for.
            network: Our network, which the result will be loaded into.

        Returns:
            Tensors by our keys.

        Raises:
            UserError: If a key is unknown (``UnknownKeysError``, so that all of them are listed).
        """

    def rekey(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the modules of tensors whose own names tell them: ``<module>/<key>``.

        Args:
            state: Official tensors of one file; those of one network, or of a layout that needs no modules, are left as they are.
        """
        return dict(state)

    @abc.abstractmethod
    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Tell from names and shapes whether a checkpoint is of this layout, and of which options.

        Args:
            state: Official tensors, keyed as ``load_official`` takes them: ``<module>/<key>``, or ``<key>`` where which module it
                is of is not known. Modules that the checkpoint lacks are absent.

        Returns:
            Official options in the form that ``build`` takes, for the modules that are there; None for another layout.
        """

    def check_class(self, class_name: str) -> None:  # noqa: B027 - most layouts are told by their tensors alone
        """Refuse a network whose tensors look like this layout's and mean another thing.

        Args:
            class_name: Official class, where the file says; else empty.

        Raises:
            UserError: If it is such a class.
        """

    def options_beside(self, beside: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Official options that are told by what lies beside a network in its snapshot; by default none.

        Args:
            beside: Plain attributes of the snapshot's other objects, with their ``class_name``, by their names there.
        """
        return {}

    def fit_autoencoder(self, autoencoder: ModelMixin, config: Mapping[str, Any]) -> None:  # noqa: B027 - optional hook
        """Write into an autoencoder's config how the converted network's latents are scaled, where its own differs.

        Args:
            autoencoder: From the user's folder; changed in place.
            config: Official options of the network.
        """

    @abc.abstractmethod
    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageGenerationPipeline:
        """Make a pipeline of converted networks.

        Args:
            networks: From ``build``, loaded.
            config: The official options they were built from.

        Raises:
            UserError: If the network that samples is not among them.
        """


class NetworkFreeSource(OfficialSource):
    """A part of an official code that has options and no network, such as a process of noise: no file holds it.

    Attributes:
        owner: What it is, for messages.
        refusal: Why it makes no images, and what to do instead.
    """

    owner: str
    refusal: str

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Refuse every tensor."""
        if state:
            raise UnknownKeysError(self.owner, state)
        return {}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """No checkpoint is one."""
        return None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageGenerationPipeline:
        """Refuse.

        Raises:
            UserError: Always.
        """
        raise UserError(self.refusal)


def show_names(names: list[str]) -> str:
    """List a few names for a message, and count the rest."""
    rest = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + rest


def split_by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort official tensors by the modules that their names begin with.

    Args:
        state: Tensors by ``<module>/<key>``, or those of one network by ``<key>``.

    Returns:
        Tensors by key, by module; those without one under the empty name.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        module, slash, rest = key.partition("/")
        parts.setdefault(module if slash else "", {})[rest if slash else key] = value
    return parts


def split_modules(networks: Mapping[str, ModelMixin], state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort official tensors by module.

    Args:
        networks: Networks by module name.
        state: Tensors by ``<module>/<key>``, or by ``<key>`` where there is one network (whose keys may hold slashes, as
            TensorFlow's do).

    Raises:
        UserError: If a tensor belongs to no module.
    """
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in networks}
    if len(networks) == 1 and not any(key.startswith(f"{name}/") for key in state for name in networks):
        return {name: dict(state) for name in networks}
    strays = []
    for key, value in state.items():
        module, slash, rest = key.partition("/")
        if slash and module in parts:
            parts[module][rest] = value
        else:
            strays.append(key)
    if strays:
        sentence = f"the checkpoint has tensors of no module of {', '.join(networks)}: {show_names(sorted(strays))}"
        raise MismatchError(sentence, [f"belongs to no module: {key}" for key in sorted(strays)])
    return parts


def convert_known(
    source: OfficialSource, module: str, tensors: dict[str, Tensor], network: ModelMixin
) -> tuple[dict[str, Tensor], UnknownKeysError | None]:
    """Rename the tensors that a source knows, and keep its complaint about the others."""
    try:
        return source.convert_state(module, tensors, network), None
    except UnknownKeysError as error:
        known = {key: value for key, value in tensors.items() if key not in error.keys}
        return source.convert_state(module, known, network), error


def load_official(source: OfficialSource, networks: Mapping[str, ModelMixin], state: Mapping[str, Tensor]) -> None:
    """Load official tensors into our networks, all of them and nothing else.

    Args:
        source: The layout.
        networks: From ``source.build``; changed in place, and only if everything fits.
        state: Official tensors by ``<module>/<key>``, or by ``<key>`` where there is one network.

    Raises:
        MismatchError: If a tensor is missing, left over or of another shape; it lists every one of them.
        UserError: If a tensor's content is not what the layout can hold.
    """
    sentences: list[str] = []
    problems: list[str] = []
    states = {}
    for module, tensors in split_modules(networks, state).items():
        states[module], unknown = convert_known(source, module, tensors, networks[module])
        owner = f"the official checkpoint of {source.name} ({module})"
        if unknown is not None:
            sentences.append(str(unknown))
            problems += [f"{module}: no place for {key}" for key in unknown.keys]
        for verb, names in differences(states[module], networks[module].state_dict()).items():
            if names:
                sentences.append(f"{owner} {verb} {show_names(names)}")
                problems += [f"{module}: {verb} {name}" for name in names]
    if problems:
        raise MismatchError("; ".join(sentences), problems)
    for module, converted in states.items():
        networks[module].load_state_dict(converted)


def differences(converted: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Keys by what is wrong with them, the verb of a sentence whose subject is the checkpoint."""
    return {
        "lacks": sorted(ours.keys() - converted.keys()),
        "has no place for": sorted(converted.keys() - ours.keys()),
        "has other shapes for": [
            f"{key} {tuple(value.shape)} for {tuple(ours[key].shape)}"
            for key, value in sorted(converted.items())
            if key in ours and value.shape != ours[key].shape
        ],
    }
