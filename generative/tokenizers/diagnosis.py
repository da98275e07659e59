"""Signs in a run's log that a tokenizer's codebook collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RECENT = 3
"""Log entries that must agree."""
LEAST_PERPLEXITY = 0.02
"""Share of a codebook's size below which its perplexity shows a collapse..."""
LARGE_CODEBOOK = 1024
"""... of at most so many codes: a large codebook may rest on few of its codes early on, and a batch has few tokens."""
TRIVIAL_PERPLEXITY = 1.5
"""... and this for the smallest: hardly more than one code."""


def find_warnings(
    history: Sequence[Mapping[str, Any]], codebooks: Mapping[str, int], is_reviving: bool = False
) -> dict[str, str]:
    """Find what is wrong in the newest log entries.

    Args:
        history: Entries of metrics.jsonl, oldest first.
        codebooks: V by codebook name.
        is_reviving: Whether dead codes are revived.

    Returns:
        One sentence by rule, of the rules that apply now.
    """
    found = {}
    for name, num_codes in codebooks.items():
        key = f"diagnosis/perplexity_{name}"
        entries = [entry for entry in history if key in entry][-RECENT:]
        least = max(LEAST_PERPLEXITY * min(num_codes, LARGE_CODEBOOK), TRIVIAL_PERPLEXITY)
        if len(entries) == RECENT and max(entry[key] for entry in entries) < least:
            usage = entries[-1][f"diagnosis/usage_{name}"]
            advice = "lower the learning rate" if is_reviving else "set revive_dead_codes, or lower the learning rate"
            found[f"{name}_collapse"] = (
                f"the codes of {name} have collapsed: images use {usage:.1%} of its {num_codes} codes, with a perplexity of "
                f"{entries[-1][key]:.3g} for {RECENT} log entries; {advice}"
            )
    return found
