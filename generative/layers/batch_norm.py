"""Batch normalisation for generators: class-conditional, over all processes, with statistics that can be recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.checkpointing import is_repeated, once

NormKind = Literal["batch", "instance", "none"]
Condition = Tensor
"""Class labels (B,) int64 for embedding tables, or vectors (B, D) for linear layers."""


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce by summation; every process's output depends on every input, so the gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # By itself, so that a gradient penalty's second derivative is summed too.
        return cast(Tensor, _SumOverProcesses.apply(gradients[0].contiguous()))


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum a tensor over the processes of the default group, differentiably; the tensor itself when there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    return _SumOverProcesses.apply(value)


def batch_statistics(sample: Tensor, cross_replica: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, in float32 and in two passes (no cancellation).

    Args:
        sample: (B, C, H, W).
        cross_replica: Take them over the batches of all processes, which may differ in size.

    Returns:
        Mean (C,), variance (C,) and the number of values per channel, a scalar tensor.
    """
    values = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
    reduce = sum_over_processes if cross_replica else lambda value: value
    count = reduce(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = reduce(values.sum((0, 2, 3))) / count  # (C,)
    deviation = values - mean[:, None, None]
    return mean, reduce(deviation.square().sum((0, 2, 3))) / count, count


class BatchNorm2d(nn.Module):
    """Batch normalisation (arXiv 1502.03167) without gain and bias.

    Normalises by the biased variance of the batch in train mode, by the moving averages in eval mode. ``nn.SyncBatchNorm``
    raises on CPU; ``cross_replica`` here works wherever all-reduce does.

    Args:
        num_channels: C.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the moving averages.
        moving_variance: Whether the moving average is one of unbiased (torch) or biased (BigGAN's own) batch variances.
        cross_replica: Normalise over the batches of all processes together.
    """

    moves_in_training = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        moving_variance: Literal["unbiased", "biased"] = "unbiased",
        cross_replica: bool = False,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.moving_variance = moving_variance
        self.cross_replica = cross_replica
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, sample: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return F.batch_norm(sample, self.running_mean, self.running_var, eps=self.eps)
        if not self.cross_replica and self.moving_variance == "unbiased":  # torch's fused kernel does exactly this
            return F.batch_norm(sample, *self.moving_averages(), training=True, momentum=self.momentum, eps=self.eps)
        mean, variance, count = batch_statistics(sample, self.cross_replica)
        once(lambda: self._move(mean, variance, count))
        scale = torch.rsqrt(variance + self.eps)
        return ((sample - mean[:, None, None]) * scale[:, None, None]).to(sample.dtype)

    def moving_averages(self) -> tuple[Tensor, Tensor]:
        """Moving mean and variance for a function that moves them: copies, where they have been moved in a first computation."""
        averages = self.running_mean, self.running_var
        return (averages[0].clone(), averages[1].clone()) if is_repeated() else averages

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        factor = count / (count - 1).clamp(min=1) if self.moving_variance == "unbiased" else torch.ones_like(count)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * factor).to(self.running_var.dtype), self.momentum)

    def fold_statistics(self, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and bias that do eval mode's normalisation too: x * new gain + new bias = normalised * gain + bias.

        Args:
            gain: (..., C).
            bias: (..., C).

        Returns:
            Both, of the same shapes.
        """
        gain = gain * torch.rsqrt(self.running_var + self.eps)
        return gain, torch.addcmul(bias, self.running_mean, gain, value=-1)

    def can_fold(self, sample: Tensor) -> bool:
        """Whether ``fold_statistics`` may stand for the norm: in eval mode, and not in half precision, where it rounds more."""
        return not self.training and sample.dtype not in (torch.float16, torch.bfloat16)

    def extra_repr(self) -> str:
        """Show the size and the settings."""
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}, cross_replica={self.cross_replica}"


class InstanceNorm2d(BatchNorm2d):
    """Instance normalisation in train mode, moving averages in eval mode (``norm_style`` "in" of BigGAN-PyTorch).

    Arguments as ``BatchNorm2d``, of which it has eps and momentum only: an instance lies on one process.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_channels, eps, momentum)

    def forward(self, sample: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return F.instance_norm(
            sample,
            *self.moving_averages(),
            use_input_stats=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )


def modulate(sample: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Multiply channels by a gain and add a bias, in the sample's precision.

    Args:
        sample: (B, C, H, W).
        gain: (C,) or (B, C).
        bias: (C,) or (B, C).

    Returns:
        (B, C, H, W).
    """
    gain, bias = gain.to(sample.dtype)[..., None, None], bias.to(sample.dtype)[..., None, None]  # (.., C, 1, 1)
    return torch.addcmul(bias, sample, gain)


class ConditionalNorm2d(nn.Module):
    """Normalisation whose gain and bias depend on a condition: out = normalised * (1 + gain(c)) + bias(c) (arXiv 1707.00683).

    Args:
        norm: Normalises (B, C, H, W) without gain and bias; ``nn.Identity()`` for none.
        num_channels: C.
        affine_layer: Called with C, makes a module that maps a condition to (B, C): an embedding table, or a linear layer over
            class embeddings and noise.
    """

    def __init__(self, norm: nn.Module, num_channels: int, affine_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        self.gain = affine_layer(num_channels)
        self.bias = affine_layer(num_channels)

    def forward(self, sample: Tensor, condition: Condition) -> Tensor:
        """Normalise and modulate.

        Args:
            sample: (B, C, H, W).
            condition: What the affine layers take, B of it.

        Returns:
            (B, C, H, W).
        """
        gain, bias = 1 + self.gain(condition), self.bias(condition)  # (B, C)
        if isinstance(self.norm, BatchNorm2d) and self.norm.can_fold(sample):
            normalised = sample  # one pass over the map instead of two
            gain, bias = self.norm.fold_statistics(gain, bias)
        else:
            normalised = self.norm(sample)
        return modulate(normalised, gain, bias)


class AffineBatchNorm2d(BatchNorm2d):
    """Batch normalisation with a learned gain and bias per channel; arguments as ``BatchNorm2d``."""

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        moving_variance: Literal["unbiased", "biased"] = "unbiased",
        cross_replica: bool = False,
    ) -> None:
        super().__init__(num_channels, eps, momentum, moving_variance, cross_replica)
        self.gain = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, sample: Tensor) -> Tensor:
        """Normalise and modulate (B, C, H, W)."""
        if not self.training or self.moving_variance == "unbiased" and not self.cross_replica:
            averages = self.moving_averages()
            return F.batch_norm(sample, *averages, self.gain, self.bias, self.training, self.momentum, self.eps)
        return modulate(super().forward(sample), self.gain, self.bias)


@torch.no_grad()
def recompute_statistics(network: nn.Module, forward: Callable[[], object], num_batches: int) -> None:
    """Replace the moving statistics by plain averages over fresh batches ("standing statistics", arXiv 1809.11096, section 2).

    Only batch norm is put in train mode, so that every other layer behaves as it will when sampling.

    Args:
        network: Changed in place; ends in eval mode.
        forward: Runs the network on one batch.
        num_batches: Number of batches to average over.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
    try:
        for index in range(num_batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the n-th value enters a running mean with weight 1/n
            forward()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
