"""``generative quickstart``: what it says when it is stopped."""

from __future__ import annotations

import re
import shlex
import signal

import pytest

from generative.cli.main import main
from generative.core.trainer import Trainer

FRACTION = "0.001"


@pytest.mark.parametrize("arguments", [["--overwrite"], ["--seed", "3"]])
def test_a_stopped_quickstart_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """The command it names is one that it takes, and that loses nothing."""
    monkeypatch.setattr(Trainer, "fit", lambda trainer: None)
    monkeypatch.setattr(Trainer, "stopped_by", signal.SIGINT)
    assert main(["quickstart", "--output", "my page", "--fraction", FRACTION, *arguments]) == 130
    (command,) = re.findall(r"a checkpoint was saved, go on with `(.*)`", capsys.readouterr().out)
    words = shlex.split(command)
    assert words[:4] == ["generative", "quickstart", "--output", "my page"] and words[-2:] == ["--fraction", FRACTION]
    assert "--overwrite" not in words and words[words.index("--seed") + 1] == ("3" if "3" in arguments else "0")
    assert main(words[1:]) == 130
