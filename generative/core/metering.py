"""Counting what computations cost without doing them: operations, and bytes alive at once."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from generative.core.errors import UserError
from generative.core.runtime import Precision

INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class HollowTensor(Tensor):
    """A tensor without content that says it is the processor's: what is computed from it has none either.

    Real tensors may stand beside it in an operation. (torch's ``FakeTensor`` does the same with more care, in several
    times the time.)

    Args:
        shape: A tensor on the meta device: size, strides and type.
    """

    shape_only: Tensor

    @staticmethod
    def __new__(cls, shape: Tensor) -> Self:
        """Wrap a tensor of the meta device."""
        self: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            shape.size(),
            strides=shape.stride(),
            storage_offset=shape.storage_offset(),
            dtype=shape.dtype,
            device=torch.device("cpu"),
        )
        self.shape_only = shape
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Its shape and type."""
        return f"HollowTensor({tuple(self.size())}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> HollowTensor:
        """Another of the same shape."""
        return memo.setdefault(id(self), HollowTensor(self.shape_only.clone()).requires_grad_(self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run one operation on shapes alone, and tell the meter."""
        given: dict[int, HollowTensor] = {}

        def strip(value: Any) -> Any:
            if isinstance(value, HollowTensor):
                given[id(value.shape_only)] = value
                return value.shape_only
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.dim():
                return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
            return torch.device("meta") if isinstance(value, torch.device) else value

        def wrap(value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.is_meta):
                return value
            same = given.get(id(value))  # an operation in place returns what it was given
            return cls(value) if same is None else same

        if torch.Tag.inplace_view in func.tags:  # the wrapper's own size changes too
            with no_dispatch():
                func(*args, **(kwargs or {}))
        if func._overloadpacket.__name__ in INDEXING:
            args = (args[0], places_of_masks(args[1]), *args[2:])
        args, kwargs = tree_map(strip, args), tree_map(strip, kwargs or {})
        try:
            result = func(*args, **kwargs)
        except NotImplementedError:  # no rule for its shapes: those of its parts
            from torch._decomp import decomposition_table

            if func not in decomposition_table:
                raise UserError(f"the costs of {func} cannot be told without running it; leave --dry-run out") from None
            result = decomposition_table[func](*args, **kwargs)
        if Meter.current is not None:
            Meter.current.count(func, args, kwargs, result)
        return tree_map(wrap, result)


def places_of_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices of one tensor, real masks replaced by the places that they choose: a mask without content would choose none."""
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not isinstance(index, HollowTensor)
        found += index.nonzero(as_tuple=True) if index is not None and is_mask else [index]
    return found


class Meter:
    """Counts operations and memory of what hollow tensors go through inside.

    Operations are products and sums, two for each multiply-add, of matrix products, convolutions and attention. Memory is that of
    tensors which came to be inside, for as long as anything holds them: activations kept for the backward pass, and what
    is at work beside them.

    Args:
        left_out: Tensors that do not count (weights), whatever is written into them.
        seconds: Give up after so long.

    Raises:
        TimeoutError: From the operation that comes after that.

    Attributes:
        operations: So far.
        peak: Most bytes alive at once so far.
        current: The meter that counts, if any does.
    """

    current: ClassVar[Meter | None] = None

    def __init__(self, left_out: Iterable[Tensor] = (), seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.perf_counter() + seconds
        self.operations = 0
        self.alive = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, Any] = {}
        for tensor in left_out:
            if isinstance(tensor, HollowTensor):
                self._remember(tensor.shape_only.untyped_storage(), 0)

    def __enter__(self) -> Self:
        """Begin."""
        Meter.current = self
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        Meter.current = None

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self._sizes[key] = size
        self._references[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)
        self._references.pop(key, None)

    def leave_out(self, tensor: Tensor | None) -> None:
        """Count a tensor no more: it is kept after the computation (a gradient of weights)."""
        if isinstance(tensor, HollowTensor):
            key = tensor.shape_only.untyped_storage()._cdata
            self.alive -= self._sizes.get(key, 0)
            self._sizes[key] = 0

    def count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take note of one operation on tensors of the meta device."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise TimeoutError("counting takes too long")
        packet = func._overloadpacket
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=result)
        elif packet.__name__ == _CPU_ATTENTION:
            self.operations += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif packet.__name__ == f"{_CPU_ATTENTION}_backward":
            self.operations += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                storage = leaf.untyped_storage()
                self._remember(storage, storage.nbytes())


class AcceleratorRules(TorchFunctionMode):
    """Inside, the processor computes as an accelerator would: what bears on memory, not on values.

    Attention drops within its kernel, and autocast takes norms, softmax and losses in float32, as CUDA's does.
    """

    IN_FLOAT32 = frozenset((
        F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.mse_loss, F.l1_loss, F.cross_entropy, F.cosine_similarity,
        F.softplus, torch.layer_norm, torch.group_norm, torch.softmax, torch.log_softmax, torch.nn.functional.smooth_l1_loss,
    ))  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            args, kwargs = (), {**named, **kwargs, "dropout_p": 0.0}
        elif func in self.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(arg.float() if is_half(arg) else arg for arg in args)
            kwargs = {key: value.float() if is_half(value) else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


def is_half(value: Any) -> bool:
    """Whether a value is a tensor of half precision."""
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


@contextmanager
def as_accelerator(precision: Precision) -> Iterator[None]:
    """Inside, computations cost what they would on an accelerator at a precision of training."""
    with ExitStack() as stack:
        if precision != "no":
            # float16's costs are bfloat16's.
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        stack.enter_context(AcceleratorRules())
        yield


def hollow_out(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Replace the weights and buffers of modules by hollow ones.

    Args:
        modules: Changed in place, on any device; weights that they share stay shared.

    Returns:
        Puts the old ones back.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # with the old ones, so that none of their ids is given twice
    places: list[tuple[Any, str, Tensor]] = []
    for part in dict.fromkeys(part for module in modules for part in module.modules()):
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    places.append((tensors, name, tensor))
                    tensors[name] = seen.setdefault(id(tensor), (tensor, _hollow(tensor)))[1]  # type: ignore[assignment]

    def restore() -> None:
        for tensors, name, tensor in places:
            tensors[name] = tensor

    return restore


def _hollow(tensor: Tensor) -> Tensor:
    empty = HollowTensor(torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"))
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
