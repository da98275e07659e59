"""A folder as a repository of the Hugging Face hub, by one commit: what is there is not sent again, what is gone is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.checkpoint import MANIFEST
from generative.core.errors import RunError, UserError
from generative.core.hub import endpoint, is_unreachable, reason, unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Account:
    """Who pushes.

    Attributes:
        token: Of the hub.
        name: The user's.
        organizations: Names that the user may push under, too.
    """

    token: str
    name: str
    organizations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: Page of the repository, at the revision.
        commit: Its newest commit.
        is_changed: Whether this push made it; else all was there already.
    """

    url: str
    commit: str
    is_changed: bool


def check_name(repo: str) -> None:
    """Refuse a name that no repository may have, before anything is asked or written.

    Raises:
        UserError: If it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"REPO '{repo}' is no name of a repository: {reason(error)} Write user/name.") from error


def log_in(repo: str) -> Account:
    """Find the token, and ask the hub whose it is.

    Args:
        repo: ``user/name``, ``organization/name``, or a name alone, which is the user's own.

    Raises:
        UserError: If there is no token, it is not valid, or not one that may write under the name.
        RunError: If the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise UserError(
            f"no token of the hub is found: log in with `hf auth login`, or set HF_TOKEN to one with write permission ({TOKENS})"
        )
    with refused(repo, "nothing was sent"):
        found: dict[str, Any] = HfApi(token=token).whoami()
    account = Account(token, str(found["name"]), tuple(str(each["name"]) for each in found.get("orgs", ())))
    owner = repo.partition("/")[0] if "/" in repo else account.name
    if owner.lower() not in (name.lower() for name in (account.name, *account.organizations)):
        others = f", or of {', '.join(account.organizations)}" if account.organizations else ""
        raise UserError(f"'{repo}' is not yours to write: the token is of {account.name}{others}; push to {account.name}/...")
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"the token of {account.name} may only read; make one with write permission ({TOKENS})")
    return account


def push_folder(
    folder: Path,
    repo: str,
    account: Account,
    message: str,
    private: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Make a repository hold a folder's files, by one commit: a reader sees the old ones or the new ones, never a mixture.

    Files that an earlier push wrote (its manifest lists them) and this folder has not are removed; others stay.

    Args:
        folder: Written by ``generative.core.checkpoint.write_folder``.
        repo: Its name; see ``log_in``. A repository that does not exist is made.
        account: From ``log_in``.
        message: Of the commit.
        private: Only its owner sees it.
        revision: Branch; made from the main one where there is none. None for the main one.

    Raises:
        UserError: If the hub refuses it, or the repository is public and should be private.
        RunError: If the hub cannot be reached, or fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=account.token)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with refused(repo, "nothing of it is published; what was sent is not sent again"):
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise UserError(
                f"'{name}' is public, and --private is asked for; make it private at {endpoint()}/{name}/settings, or leave "
                "--private out"
            )
        if revision not in (None, MAIN):
            api.create_branch(name, branch=str(revision), exist_ok=True)
        before = head(api, name, revision)
        gone = pushed_files(api, name, revision) - files.keys()
        # One commit also where xet could make several: half a pipeline is none.
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path_in_repo=where, path_or_fileobj=path) for where, path in files.items()),
                *(CommitOperationDelete(path_in_repo=where) for where in sorted(gone)),
            ],
            commit_message=message,
            revision=revision,
        )
    place = f"{endpoint()}/{name}" + ("" if revision in (None, MAIN) else f"/tree/{revision}")
    return Pushed(place, commit.oid, commit.oid != before)


def head(api: HfApi, repo: str, revision: str | None) -> str | None:
    """The newest commit of a repository's branch."""
    sha: str | None = api.repo_info(repo, revision=revision).sha
    return sha


def pushed_files(api: HfApi, repo: str, revision: str | None) -> set[str]:
    """Files of a repository that its manifest lists, so that a push wrote them; those of others are none of ours."""
    there = set(api.list_repo_files(repo, revision=revision))
    if MANIFEST not in there:
        return set()
    path = api.hf_hub_download(repo, MANIFEST, revision=revision)
    try:
        return there & {*json.loads(Path(path).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


@contextmanager
def refused(repo: str, state: str) -> Iterator[None]:
    """Say what the hub answers to a push, in one sentence.

    Args:
        repo: What is pushed to.
        state: What became of the push, for messages.

    Raises:
        UserError: If the hub refuses the user.
        RunError: If it cannot be reached, or fails.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        if cause is None and is_unreachable(error):
            raise unreachable(state) from error
        if cause is None:
            if isinstance(error, ValueError):
                raise UserError(f"the hub does not take the files of '{repo}': {reason(error)}") from error
            raise
        code = cause.response.status_code
        if code == 401:
            raise UserError(
                f"the hub does not know the token; log in again with `hf auth login`, or renew HF_TOKEN ({TOKENS})"
            ) from error
        if code in (402, 403, 404):
            raise UserError(
                f"the token may not write to '{repo}' ({reason(cause)}); take one with write permission ({TOKENS}), or push to a "
                "name of your own"
            ) from error
        if code < 500 and code != 429:
            raise UserError(f"the hub refuses '{repo}': {reason(cause)}") from error
        raise RunError(f"{endpoint()} fails ({code}: {reason(cause)}), {state}; repeat the command later") from error
