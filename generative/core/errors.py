"""The one exception that means: the user's input is wrong, and this sentence says how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """Bad user input, told in one sentence: which argument, the value got, and what to do.

    The command line prints the sentence as ``error: ...`` and exits with code 2, without a traceback. Anything else that
    escapes is a defect of ours and keeps its traceback.
    """
