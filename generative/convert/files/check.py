"""Check the tensors of a stranger's file before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from generative.convert.base import show_names
from generative.convert.files.snapshot import MAX_EMPTY_AXIS
from generative.core.errors import UserError


def check_tensors(owner: str, state: Mapping[str, Tensor]) -> None:
    """Check that tensors are plain, are backed by memory of their size, and hold no NaN or infinity; masks of attention may.

    Args:
        owner: Whose they are, for messages.
        state: Tensors by official name.

    Raises:
        UserError: Naming those that are not.
    """
    strange = [key for key, value in state.items() if not is_backed(value)]
    if strange:
        raise UserError(f"{owner} holds tensors that are not plain or larger than their memory: {show_names(strange)}")
    damaged = [key for key, value in state.items() if not (is_finite(value) or is_mask(value))]
    if damaged:
        raise UserError(f"{owner} holds NaN or infinity in {show_names(damaged)}: it diverged or is damaged, get another copy")


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def is_mask(value: Tensor) -> bool:
    """Whether a tensor is an additive mask of attention, as VAR's files hold it: 0 on the diagonal, 0 or -inf elsewhere."""
    is_square = value.ndim >= 2 and value.shape[-1] == value.shape[-2]
    if not is_square or bool(value.diagonal(dim1=-2, dim2=-1).count_nonzero()):
        return False
    return bool(((value == 0) | torch.isneginf(value)).all())


def is_backed(value: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, and has memory for each of its values (a stride of 0 fakes them)."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    if value.numel() == 0:
        return max(value.shape) <= MAX_EMPTY_AXIS
    return value.numel() <= value.untyped_storage().nbytes() // value.element_size()
