"""Environment of the processes that tests start, whatever launcher the tests themselves run under."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def launch_environment(*places: Path) -> dict[str, str]:
    """Variables for a job of its own: no launcher's, the project and further places to import from, one thread a process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_", "WORLD_", "RANK"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, *places))), "OMP_NUM_THREADS": "1"}
