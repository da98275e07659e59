"""Spectral normalisation (arXiv 1802.05957) as SAGAN and BigGAN train with it.

It differs from ``torch.nn.utils.parametrizations.spectral_norm`` where their results depend on it: one power iteration runs at
every forward, in eval mode too (where it is not written back), and only the left vector u is kept, so an average of weights
whose u is averaged along stays normalised after one iteration.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.checkpointing import once

ALIGNMENT = 64  # bytes, of torch's own CPU allocations


def orthogonalise(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Subtract a vector's components along others, one after the other (Gram-Schmidt).

    Args:
        vector: (n,).
        basis: Vectors (n,); a zero vector (more asked for than the matrix has dimensions) takes nothing away.

    Returns:
        (n,) orthogonal to ``basis`` if that is orthogonal itself.
    """
    tiny = torch.finfo(vector.dtype).tiny
    for other in basis:
        vector = vector - (vector @ other) / (other @ other).clamp(min=tiny) * other
    return vector


@torch.no_grad()
def power_iteration(matrix: Tensor, left: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step towards the leading singular vectors.

    Args:
        matrix: (out, in).
        left: (S, out) estimates of the S leading left singular vectors, largest first.
        eps: Smallest norm that is divided by.

    Returns:
        New left (S, out) and right (S, in) vectors, of unit length, and the singular values u W v (S,) that they give.
    """
    lefts: list[Tensor] = []
    rights: list[Tensor] = []
    values: list[Tensor] = []
    for u in left:
        v = F.normalize(orthogonalise(u @ matrix, rights), dim=0, eps=eps)  # (in,)
        rights.append(v)
        product = matrix @ v  # (out,)
        u = F.normalize(orthogonalise(product, lefts), dim=0, eps=eps)  # (out,)
        lefts.append(u)
        values.append(u @ product)
    return torch.stack(lefts), torch.stack(rights), torch.stack(values)


class DivideBySingularValue(torch.autograd.Function):
    """``matrix / sigma`` with sigma = u W v, differentiated with u and v held constant (arXiv 1802.05957, eq. 8).

    Autograd's own way through the quotient makes eight passes over the weight, this one three.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, u, v, sigma)
        return matrix / sigma

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        matrix, u, v, sigma = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of this gradient, sigma is a function of the weight too
            sigma = u @ (matrix @ v)
        share = torch.dot(gradient.flatten(), matrix.flatten()) / sigma
        return torch.addr(gradient, u * -share, v) / sigma, None, None, None


def is_channels_last(weight: Tensor) -> bool:
    """Whether a weight lies in memory with its channels innermost, and only so."""
    return weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def as_matrix(weight: Tensor) -> Tensor:
    """Flatten (N, ...) to (N, in), the inputs in the order in which they lie in memory: a channels-last weight is not copied."""
    return (weight.permute(0, 2, 3, 1) if is_channels_last(weight) else weight).flatten(1)


def from_matrix(matrix: Tensor, weight: Tensor) -> Tensor:
    """Undo ``as_matrix``: (N, in) in the memory order of ``weight`` to (N, ...) of its shape."""
    if is_channels_last(weight):
        return matrix.unflatten(1, weight.permute(0, 2, 3, 1).shape[1:]).permute(0, 3, 1, 2)
    return matrix.unflatten(1, weight.shape[1:])


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value, with state of its own.

    The estimate sigma = u W v is differentiated with u and v held constant (arXiv 1802.05957, eq. 8). It is computed in float32
    with autocast off: in bfloat16 a power iteration has two digits.

    With ``num_inputs`` the right vector is kept as well and eval mode takes both as they are, without an iteration: what
    ``torch.nn.utils.spectral_norm`` does, and so the networks trained with it (Projected GAN, Hugging Face's BigGAN-deep).

    Args:
        num_outputs: First dimension of the weight; the others are flattened.
        eps: Smallest norm that a vector is divided by.
        num_singular_values: How many singular values to track; only the first normalises, the others are there to be logged.
        num_iterations: Power iterations per training forward. Eval mode always does one, from the stored vectors.
        num_inputs: Product of the weight's other dimensions: keep the right vectors too, and iterate in train mode only.
    """

    moves_in_training = True
    u: Tensor
    v: Tensor | None
    singular_values: Tensor

    def __init__(
        self,
        num_outputs: int,
        eps: float = 1e-12,
        num_singular_values: int = 1,
        num_iterations: int = 1,
        num_inputs: int | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.num_iterations = num_iterations
        u = torch.randn(num_singular_values, num_outputs)
        v = None if num_inputs is None else F.normalize(torch.randn(num_singular_values, num_inputs), dim=1)
        # Of any length where an iteration comes before every use, of unit length where eval mode may use it as it is.
        self.register_buffer("u", u if v is None else F.normalize(u, dim=1))  # (S, out)
        self.register_buffer("v", v)  # (S, in)
        self.register_buffer("singular_values", torch.ones(num_singular_values))  # (S,), of the last training forward

    def forward(self, weight: Tensor) -> Tensor:
        """Normalise a weight.

        Args:
            weight: (out, ...).

        Returns:
            weight / sigma, same shape and dtype.
        """
        with torch.autocast(weight.device.type, enabled=False):
            full = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
            matrix = as_matrix(full)  # (out, in)
            if torch.compiler.is_compiling():  # a compiler fuses the passes by itself
                u, v, _ = self._estimate(matrix.detach(), full)
                normalised = matrix / (u[0] @ (matrix @ v[0]))
            else:
                # Weights read from a file may lie at odd addresses, where matrix-vector products round otherwise: a copy lies as
                # any other tensor does, so that a saved and loaded network is bit-equal.
                matrix = matrix.clone() if matrix.data_ptr() % ALIGNMENT else matrix
                u, v, values = once(lambda: self._estimate(matrix.detach(), full))
                normalised = cast(Tensor, DivideBySingularValue.apply(matrix, u[0], v[0], values[0]))
            return from_matrix(normalised, full).to(weight.dtype)

    @torch.no_grad()
    def _estimate(self, matrix: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Singular vectors (S, out) and (S, in, in memory order) and values (S,) of this forward; train mode remembers them."""
        u = self.u.to(matrix.dtype).clone()  # for its address, as the matrix's
        if self.v is not None and not self.training:
            v = self.v.to(matrix.dtype).clone()
            if is_channels_last(weight):
                v = v.unflatten(1, weight.shape[1:]).permute(0, 2, 3, 1).flatten(1)  # (S, in)
            return u, v, ((matrix @ v.T).T * u).sum(1)
        for _ in range(self.num_iterations if self.training else 1):
            u, v, values = power_iteration(matrix, u, self.eps)
        if self.training:
            self.u.copy_(u)
            if self.v is not None:
                self.v.copy_(from_matrix(v, weight).flatten(1))
            self.singular_values.copy_(values)
        return u, v, values

    def extra_repr(self) -> str:
        """Show the size and the settings."""
        return f"{self.u.shape[1]}, eps={self.eps}, num_singular_values={len(self.u)}, num_iterations={self.num_iterations}"


class SpectralNormConv2d(nn.Conv2d):
    """Convolution whose weight is divided by its spectral norm, stride 1, same size out for odd kernels.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd height and width of the kernel.
        bias: Whether to add a bias, which is not normalised.
        eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_iterations: See ``SpectralNorm``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        bias: bool = True,
        eps: float = 1e-12,
        num_singular_values: int = 1,
        num_iterations: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.spectral_norm = SpectralNorm(out_channels, eps, num_singular_values, num_iterations)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', H, W)."""
        return F.conv2d(input, self.spectral_norm(self.weight), self.bias, self.stride, self.padding)


class SpectralNormLinear(nn.Linear):
    """Linear layer whose weight is divided by its spectral norm; arguments as ``SpectralNormConv2d``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-12,
        num_singular_values: int = 1,
        num_iterations: int = 1,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.spectral_norm = SpectralNorm(out_features, eps, num_singular_values, num_iterations)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(input, self.spectral_norm(self.weight), self.bias)


class SpectralNormEmbedding(nn.Embedding):
    """Embedding table (num_embeddings, embedding_dim) divided by its spectral norm; arguments as ``SpectralNormConv2d``."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        eps: float = 1e-12,
        num_singular_values: int = 1,
        num_iterations: int = 1,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.spectral_norm = SpectralNorm(num_embeddings, eps, num_singular_values, num_iterations)

    def forward(self, input: Tensor) -> Tensor:
        """Look up integers (...) to (..., embedding_dim)."""
        return F.embedding(input, self.spectral_norm(self.weight))
