"""Whether derivatives are taken forwards, of which fused kernels and functions with a backward pass of their own know nothing."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_forward_differentiated() -> bool:
    """Whether transforms of ``torch.func`` (``jvp`` among them) or dual numbers are at work; never while compiling."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0
