"""``generative push``: a run's pipeline on the Hugging Face hub, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from generative.cli.arguments import CommandParser
from generative.cli.export import add_source_argument, add_wanted_flags, format_size, take_wanted
from generative.core.errors import UserError

EPILOG = """Exports as `generative export` does, and uploads the folder in one commit: readers see the old files or the new ones.
Log in first: `hf auth login`, or HF_TOKEN with write permission.
  generative push runs/cifar10-dit user/cifar10-dit --dry-run
  generative push runs/cifar10-dit user/cifar10-dit --private --dtype float16 --license apache-2.0
  generative push runs/cifar10-dit/checkpoint-best user/cifar10-dit --revision best --commit-message "Best checkpoint"
A repeated push sends only what changed, and removes what an earlier push wrote and this one does not; files of others stay. The
name then stands wherever a run does: generative sample user/cifar10-dit, fid-score test/ user/cifar10-dit@best."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative push", "Put a run's pipeline on the Hugging Face hub.", EPILOG)
    add_source_argument(parser)
    parser.add_argument("repo", metavar="REPO", help="user/name or organization/name; made where it does not exist")
    add_wanted_flags(parser)
    parser.add_argument("--private", action="store_true", help="only its owner sees it; a public one is refused")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; made where it does not exist (default: main)")
    parser.add_argument("--commit-message", metavar="TEXT", help="default: that a pipeline was pushed")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    given = vars(parser.parse_args(arguments))
    return push(
        **{name: given.pop(name) for name in ("source", "repo", "private", "revision", "commit_message", "dry_run")}, given=given
    )


def push(
    source: Path,
    repo: str,
    private: bool,
    revision: str | None,
    commit_message: str | None,
    dry_run: bool,
    given: dict[str, object],
) -> int:
    """Export, and upload or list; returns the exit code."""
    if commit_message is not None and not commit_message.strip():
        raise UserError("--commit-message is empty; give a sentence, or leave it out")
    from generative.core.hub_upload import check_name, log_in, push_folder

    check_name(repo)
    account = None if dry_run else log_in(repo)  # a wrong token is told before anything is loaded
    from generative.core.checkpoint import write_folder
    from generative.report.publication import Publication

    publication = Publication(source, take_wanted(given))
    full_name = f"{account.name}/{repo}" if account is not None and "/" not in repo else repo
    with tempfile.TemporaryDirectory(prefix="generative-push-") as temporary:
        folder = Path(temporary) / "pipeline"
        name = full_name if revision is None else f"{full_name}@{revision}"
        write_folder(folder, lambda partial: publication.fill(partial, full_name.rpartition("/")[2], name))
        print(list_files(folder))
        if account is None:
            print(f"nothing was sent to '{full_name}' (--dry-run)")
            return 0
        message = commit_message or f"Push a {type(publication.pipeline).__name__}"
        pushed = push_folder(folder, full_name, account, message, private, revision)
    if pushed.is_changed:
        print(f"pushed as commit {pushed.commit[:12]}: {pushed.url}, sample with `generative sample {name}`")
    else:
        print(f"nothing has changed since commit {pushed.commit[:12]}: {pushed.url}")
    return 0


def list_files(folder: Path) -> str:
    """Files of a folder, a line each, with sizes and their sum."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {**sizes, f"{len(sizes)} files": sum(sizes.values())}
    return "\n".join(f"{format_size(size):>11}  {name}" for name, size in shown.items())
