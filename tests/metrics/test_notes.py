"""What metrics warn of becomes a sentence; what else is warned of passes through, and in a program takes one line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from metrics.metric import SmallSampleWarning
from metrics.notes import notes_of_warnings


def test_each_sentence_is_said_once_and_others_pass() -> None:
    notes: list[str] = ["first"]
    with pytest.warns(DeprecationWarning, match="other"), pytest.raises(ValueError, match="stop"), notes_of_warnings(notes):
        for text in ("first", "second", "second"):
            warnings.warn(text, SmallSampleWarning, stacklevel=1)
        warnings.warn("other", DeprecationWarning, stacklevel=1)
        raise ValueError("stop")
    assert notes == ["first", "second"]


@pytest.mark.parametrize("program", ["generative.cli.main", "metrics.cli"])
def test_a_program_says_a_warning_in_one_line(program: str) -> None:
    start = "main()" if program.startswith("generative") else "entry()"
    code = f"import sys, warnings, {program} as cli\n"
    code += "sys.argv = ['x', '--help']\nbuild = cli.say_warnings_plainly\n"
    code += "cli.say_warnings_plainly = lambda: (build(), warnings.warn('two\\nlines'))\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", f"{code}cli.{start}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == "warning: two lines\n" and "usage" in done.stdout
