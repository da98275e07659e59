"""Optimizers that torch lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.tensor_parts import local_part, whole_norms


class LAMB(torch.optim.Optimizer):
    """Adam's direction, in each layer scaled to its weights (You et al., arXiv 1904.00962, algorithm 2).

    r = m / (sqrt(v) + eps) + decay w, with bias-corrected moments; then w is moved by lr ||w|| / ||r|| r, or by lr r where either
    norm is 0. Vectors (biases, scales of norms) are neither decayed nor scaled, as RIN's official code has it.

    Args:
        params: Parameters or groups of them.
        lr: Rate, a share of each layer's norm.
        betas: Decay of the mean gradient and of its mean square.
        eps: Added to the root.
        weight_decay: Decay, within r.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise UserError(f"LAMB: {name} must be a finite number of 0 or more, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"LAMB: betas must be in [0, 1), got {tuple(betas)}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            by_kind: dict[tuple[bool, int], list[Tensor]] = {}
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state["step"] += 1
                by_kind.setdefault((parameter.ndim > 1, state["step"]), []).append(parameter)
            for (is_layer, step), members in by_kind.items():
                self._move(members, group, step, is_layer)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any], step: int, is_layer: bool) -> None:
        """One step of parameters that have made as many; matrices are scaled and decayed, vectors are not."""
        beta1, beta2 = group["betas"]
        gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
        means, squares = ([local_part(self.state[p][name]) for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
        weights = [local_part(p) for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, 1 - beta1**step)
        if is_layer:
            if group["weight_decay"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            weight_norms, update_norms = (whole_norms(each, parameters) for each in (weights, updates))
            ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
