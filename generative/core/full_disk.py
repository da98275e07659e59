"""A disk that takes no more, however the system puts it, as a sentence."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from generative.core.errors import RunError

REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or have the quota raised"),
    errno.EFBIG: (
        "a file may not become that large, by a limit of the process (ulimit -f) or of the file system",
        "raise the limit, or take another disk",
    ),
}
"""Error numbers of the system -> what is wrong, and what to do about it."""


def full_reason(error: BaseException) -> tuple[str, str] | None:
    """What is wrong and what to do, if a disk takes no more; None for any other error.

    Args:
        error: An ``OSError``, or one of safetensors, which has no number and tells it in its message.
    """
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(told[1])
    if number is None and "No space left" in str(error):
        number = errno.ENOSPC
    return None if number is None else REASONS.get(number)


def explain_full(error: BaseException, place: Path, kept: str, go_on: str = "") -> RunError | None:
    """The sentence for a disk that takes no more; None for any other error.

    Args:
        error: As ``full_reason``.
        place: What was being written.
        kept: A clause on what is there all the same.
        go_on: What to do after making room.
    """
    reason = full_reason(error)
    if reason is None:
        return None
    return RunError(f"{reason[0]} while writing '{place}'; {kept}: {reason[1]}{' and ' if go_on else ''}{go_on}")
