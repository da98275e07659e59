"""The processes of a job leave the training loop at the same step, without waiting for each other in any."""

from __future__ import annotations

from typing import Any

import torch

from generative.core.processes import is_several


class StopVote:
    """What processes tell each other before a step, read after it: the sum travels while they train.

    Whoever is asked to stop during a step therefore makes one more. What keeps a process from making a step, such as an image
    that cannot be read, has to be told a step ahead, so batches are drawn one step early. A single process is never late.

    Args:
        device: Where collectives want their tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._posted: torch.Tensor | None = None
        self._work: Any = None

    @property
    def is_late(self) -> bool:
        """Whether what is posted is for the step after the next."""
        return is_several()

    def post(self, signal_number: int | None, has_failed: bool) -> None:
        """Tell the others; every process calls it at the same steps.

        Args:
            signal_number: The signal that asked this process to stop; None without.
            has_failed: Whether this process cannot make another step.
        """
        self._posted = torch.tensor([signal_number or 0, int(has_failed)], device=self.device)
        if is_several():
            maximum = torch.distributed.ReduceOp.MAX
            self._work = torch.distributed.all_reduce(self._posted, op=maximum, async_op=True)

    def read(self) -> tuple[int | None, bool]:
        """What was posted last: a signal that any process got, and whether any cannot go on."""
        assert self._posted is not None
        if self._work is not None:
            self._work.wait()
            self._work = None
        number, has_failed = self._posted.tolist()
        return number or None, bool(has_failed)
