"""Exceptions that a sentence explains: the user's input is wrong, or a run cannot go on through no fault of its input."""

from __future__ import annotations


class UserError(ValueError):
    """Bad user input, told in one sentence: which argument, the value got, and what to do.

    The command line prints the sentence as ``error: ...`` and exits with code 2, without a traceback. Anything else that
    escapes is a defect of ours and keeps its traceback.
    """


class RunError(RuntimeError):
    """What surrounds a run failed it, told in one sentence: a loader worker killed, another process lost, its folder gone.

    The command line prints the sentence on every process and exits with code 1.
    """
