"""Whether a run can go on from a checkpoint: what the two must share, and the sentence for the first difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generative.core.errors import UserError


def check_state(folder: Path, saved: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Refuse a checkpoint of a run that this one cannot continue.

    Args:
        folder: The checkpoint.
        saved: Content of its state.json.
        state: What this run would record, see ``Trainer.state``.

    Returns:
        What cannot be compared, a sentence each.

    Raises:
        UserError: Naming the first difference.
    """
    rates = saved.get("learning_rates", {})
    if not all(isinstance(saved.get(key, {}), dict) for key in ("objective", "frozen", "learning_rates")) or not all(
        isinstance(rate, (int, float)) for rate in rates.values()
    ):
        raise UserError(f"'{folder / 'state.json'}' is damaged; resume from another checkpoint")
    current_state = json.loads(json.dumps(state))  # tuples become lists there
    for key, current in current_state.items():
        if key in ("step", "images_seen", "learning_rates", "objective", "frozen") or saved.get(key) == current:
            continue
        raise UserError(
            f"checkpoint '{folder}' has {key} {saved.get(key)}, this run {current}: it would not go on as it was"
            + (" (num_slots is processes times gradient_accumulation_steps)" if key == "num_slots" else "")
        )
    unknown = [f"{key} '{name}'" for key in ("objective", "frozen") if key not in saved for name in current_state[key]]
    for key, words in (("objective", ""), ("frozen", "frozen part ")):
        before, now = saved.get(key, current_state[key]), current_state[key]
        for name in dict.fromkeys([*now, *before]):
            if before.get(name) != now.get(name):
                old, new = (str(values.get(name, "none"))[:64] for values in (before, now))
                raise UserError(
                    f"checkpoint '{folder}' was trained with {words}{name} {old}, this run has {new}: "
                    "it would not go on as it was"
                    + ("; give the one it began with (sha256 of config and weights)" if key == "frozen" else "")
                )
    if not unknown:
        return []
    return [f"'{folder}' is of an older version and does not record {', '.join(unknown)}, which cannot be compared"]
