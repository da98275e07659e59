"""Pipelines by their name on the Hugging Face hub: ``user/repo`` is fetched into the hub's cache, of safetensors and JSON only.

A repository is data to us: the class that it names must be one of ours, and no file of another kind is ever fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generative.core.classes import class_modules
from generative.core.errors import RunError, UserError

INDEX = "model_index.json"
PLACES = "give a run (runs/NAME), a checkpoint, a pipeline folder, or user/repo of the hub"
_NAME = re.compile(r"(?P<mark>hf:/{1,2})?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>.+))?", re.ASCII)
# Names of the classes of errors by which requests, httpx and what follows it tell that nobody answers.
_UNREACHABLE = {
    "ConnectError",
    "ConnectionError",
    "NetworkError",
    "TransportError",
    "TimeoutException",
    "Timeout",
    "TimeoutError",
}


def local_folder(folder: str | Path, revision: str | None = None) -> Path:
    """The folder that a run or a pipeline is in: itself, or that of a hub's repository, fetched if need be.

    Args:
        folder: A folder; or ``user/repo`` or ``user/repo@revision`` of the hub, where no folder has that name. Where there is a
            folder ``user``, the name is a folder's too, unless it is written ``hf://user/repo``.
        revision: Branch, tag or commit of the repository; None for that of the name, or else its main branch.

    Returns:
        The folder; one that does not exist is handed back as it is, where its name cannot be a repository's.

    Raises:
        UserError: If the repository, or its revision, cannot be had or holds no pipeline of ours, or a revision of a folder is
            asked for.
    """
    path = Path(folder)
    named = repository_of(path)
    if named is None:
        if revision is not None:
            raise UserError(f"'{folder}' is a folder here, which has no revision '{revision}'; leave the revision out")
        return path
    repo, own = named
    if revision is not None and own is not None and revision != own:
        raise UserError(f"'{folder}' names the revision {own}, and revision is '{revision}'; give one of them")
    return fetch(repo, revision or own)


def repository_of(path: Path) -> tuple[str, str | None] | None:
    """The repository and revision that a name stands for; None where it is a folder's: one that exists, or could be mistyped."""
    found = _NAME.fullmatch(path.as_posix())
    if found is None:
        return None
    if not found["mark"] and (path.exists() or Path(path.parts[0]).exists()):
        return None
    return found["repo"], found["revision"]


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder of a repository in the hub's cache (``HF_HOME``), with what its pipeline needs; see ``local_folder``.

    A cached one is asked for changes, or taken as it is where the hub cannot be reached (``HF_HUB_OFFLINE=1``).
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    with explained(repo, revision):
        index = Path(hf_hub_download(repo, INDEX, revision=revision))
        # One commit, whatever is pushed meanwhile.
        patterns = ["*.json", *(f"{name}/*.safetensors" for name in check_index(repo, index))]
        return Path(snapshot_download(repo, revision=index.parent.name, allow_patterns=patterns))


def check_index(repo: str, index: Path) -> list[str]:
    """Names of the parts of a repository's pipeline.

    Raises:
        UserError: If it is no pipeline of ours.
    """
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        kind = content["_class_name"]
        parts = [name for name, entry in content.items() if isinstance(entry, list) and not name.startswith("_") and any(entry)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"repository '{repo}' of the hub holds no pipeline: its {INDEX} is damaged") from error
    modules = class_modules().get(kind, ()) if isinstance(kind, str) else ()
    if not any(module.startswith("pipelines.") for module in modules):
        raise UserError(
            f"repository '{repo}' of the hub holds a {kind}, which is no pipeline of this project; give one that `generative "
            "push` wrote (official weights go through `generative convert`, from a folder)"
        )
    return parts


@contextmanager
def explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Say what the hub answers, while something is fetched from it, in one sentence.

    Raises:
        UserError: In the place of the hub's own error.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings tell of each attempt what the sentence tells of all
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(
            f"'{repo}' does not exist here, and is no name that a repository of the hub may have; {PLACES}"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"repository '{repo}' is gated: ask for access at {endpoint()}/{repo}, and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"repository '{repo}' of the hub has no revision '{revision}'; give a branch, a tag or a commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"'{repo}' does not exist here, and {endpoint()} has no repository of that name that you may read; {PLACES} (if it "
            "is private: `hf auth login`)"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # before its base, which tells of a file that the repository lacks
        raise UserError(f"'{repo}' does not exist here, is not in the hub's cache, and {why_unreachable()}; {PLACES}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"repository '{repo}' of the hub holds no pipeline (it has no {INDEX}); give one that `generative push` wrote"
        ) from error
    except Exception as error:
        if is_unreachable(error):
            raise UserError(f"'{repo}' does not exist here, and {why_unreachable()}; {PLACES}") from error
        if isinstance(error, errors.HfHubHTTPError):
            raise UserError(f"repository '{repo}' cannot be fetched from {endpoint()}: {reason(error)}") from error
        raise
    finally:
        logging.set_verbosity(verbosity)


def endpoint() -> str:
    """Address of the hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, tells that the hub does not answer."""
    while error is not None:
        if any(kind.__name__ in _UNREACHABLE for kind in type(error).__mro__):
            return True
        error = error.__cause__
    return False


def why_unreachable() -> str:
    """That the hub cannot be asked, in words."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return f"{endpoint()} is not asked (HF_HUB_OFFLINE is set)"
    return f"{endpoint()} cannot be reached"


def reason(error: BaseException) -> str:
    """What the hub says of an error, or else the error's first line."""
    said = getattr(error, "server_message", None) or next((line for line in str(error).splitlines() if line.strip()), "")
    return " ".join(str(said).split()) or type(error).__name__


def unreachable(doing: str) -> RunError:
    """The error of a command that needs the hub, and cannot reach it."""
    return RunError(f"{why_unreachable()}, {doing}; repeat the command when it can")
