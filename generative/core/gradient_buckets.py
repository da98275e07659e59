"""Gradients summed over processes while the backward pass still runs: in buckets of fixed content, launched in a fixed order.

What is summed, and in which order, depends on nothing but the list of parameters, so that every process holds the same bits and
a resumed run does too. Beside the gradients themselves there is never more than one bucket of copies: a bucket takes the place of
the gradients that it was filled from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""Large enough to use the wire, small enough that the first one leaves early (Li et al., arXiv 2006.15704)."""


class GradientBuckets:
    """Sums the gradients of some parameters over processes.

    A parameter may be without gradient on some processes, where it counts as zeros, or on all of them, where it keeps none: each
    bucket carries, behind its gradients, how many processes have each of them.

    Args:
        parameters: In the order of the forward pass, the same on every process; gradients come in the opposite order.
        group: Processes, in a group of their own: a collective of the backward pass itself (cross-replica batch norm) may then
            come before or after a bucket, as it happens on each process.
        bucket_bytes: Size of a bucket, in bytes of float32; a larger parameter has one to itself.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any = None, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.group = group
        self.buckets = [Bucket(members) for members in split(list(reversed(parameters)), bucket_bytes)]
        self._place = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._is_open = False
        self._num_launched = 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)

    @contextmanager
    def reduced(self) -> Iterator[None]:
        """Inside, the last backward pass of a phase runs; afterwards gradients are sums over processes, in float32."""
        self._is_open, self._num_launched = True, 0
        for bucket in self.buckets:
            bucket.num_missing = len(bucket.parameters)
        try:
            yield
        finally:
            self._is_open = False
        # Whatever got no gradient held its bucket back, and those behind it.
        while self._num_launched < len(self.buckets):
            self._launch()
        for bucket in self.buckets:
            bucket.finish()

    def _take(self, parameter: nn.Parameter) -> None:
        """Called when a gradient is complete; launches the buckets that then are, none before those in front of it."""
        if not self._is_open:
            return  # an earlier micro-batch, or another phase that trains the same network
        self._place[id(parameter)].num_missing -= 1
        while self._num_launched < len(self.buckets) and self.buckets[self._num_launched].num_missing == 0:
            self._launch()

    def _launch(self) -> None:
        self.buckets[self._num_launched].launch(self.group)
        self._num_launched += 1


class Bucket:
    """Some parameters whose gradients travel together.

    Args:
        parameters: Of one device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in self.parameters]
        self.num_missing = 0
        self._had_gradient: list[bool] = []
        self._flat: Tensor | None = None
        self._work: Any = None

    @torch.no_grad()
    def launch(self, group: Any) -> None:
        """Move the gradients into one vector, followed by whether there was one, and start to sum it over processes."""
        self._had_gradient = [p.grad is not None for p in self.parameters]
        total = sum(self.sizes)
        flat = torch.zeros(total + len(self.sizes), dtype=torch.float32, device=self.parameters[0].device)
        there = [(view, p.grad) for view, p in zip(self._views(flat), self.parameters, strict=True) if p.grad is not None]
        if there:
            torch._foreach_copy_([view for view, _ in there], [gradient for _, gradient in there])
        if all(self._had_gradient):
            flat[total:] = 1
        else:
            flat[total:] = torch.tensor(self._had_gradient, dtype=torch.float32)
        for parameter in self.parameters:
            parameter.grad = None
        self._flat = flat
        self._work = torch.distributed.all_reduce(flat, group=group, async_op=True)

    def finish(self) -> None:
        """Wait for the sum and make it the parameters' gradients."""
        assert self._flat is not None
        self._work.wait()
        has_gradient = self._had_gradient
        if not all(has_gradient):  # only then is it read from the device, which would wait for it
            has_gradient = [count > 0 for count in self._flat[sum(self.sizes) :].tolist()]
        for parameter, view, is_there in zip(self.parameters, self._views(self._flat), has_gradient, strict=True):
            parameter.grad = view.to(parameter.dtype) if is_there else None
        self._flat = self._work = None

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parts of the vector, each in the memory layout of its parameter, as fused optimizers want them."""
        views, start = [], 0
        for parameter, size in zip(self.parameters, self.sizes, strict=True):
            views.append(flat.as_strided(parameter.size(), parameter.stride(), start))
            start += size
        return views


def split(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Cut a list of parameters into runs of at most so many bytes of float32, or of one parameter."""
    runs: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        size = 4 * parameter.numel()
        if not runs or size > room:
            runs.append([])
            room = bucket_bytes
        runs[-1].append(parameter)
        room -= size
    return runs
