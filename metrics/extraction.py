"""From a stream of images to features: resize and run the network, as fast as the machine can.

On a CPU each core runs its own few images through resizer and network, single-threaded: nothing waits at the
barriers that a network shared by all cores has in every layer, activations stay in the core's cache, and
decoding fills whatever time is left. On a GPU the batch goes as one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from metrics.extractors.base import FeatureExtractor
from metrics.resize import build_resizer

#: Precision name -> what the network computes in. Features are float32 always.
PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Batches in flight per core, so that no core waits for the slowest.
_QUEUED_PER_WORKER = 2

Images = Tensor | list[Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Extraction:
    """One network behind one resizer, and the features wanted of it.

    Args:
        extractor: The frozen network.
        resizer: Name of the resizer; None takes the extractor's own.
        precision: "float32", or "bfloat16" / "float16": faster on some hardware, and another score.
    """

    def __init__(self, extractor: FeatureExtractor, resizer: str | None = None, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not known: choose from {', '.join(PRECISIONS)}.")
        if precision == "float16" and extractor.device.type == "cpu":
            raise ValueError("precision float16 needs a GPU: on a CPU choose float32 or bfloat16.")
        self.extractor = extractor
        self.resizer = build_resizer(resizer or extractor.default_resizer)
        self.precision = precision

    def protocol(self, feature: str) -> dict[str, Any]:
        """Return what decides a feature's values: the ``metrics.files.statistics.PROTOCOL_FIELDS``."""
        return {
            "extractor": self.extractor.name,
            "weights_sha256": self.extractor.weights_sha256,
            "feature": feature,
            "input_size": self.extractor.input_size,
            "resizer": self.resizer.name,
            "normalization": self.extractor.normalization(self.resizer.name),
            "precision": self.precision,
        }

    def __call__(self, images: Images, features: Sequence[str]) -> dict[str, Tensor]:
        """Compute features of a batch.

        Args:
            images: uint8 (B, 3, H, W), or a list of uint8 (3, H, W) of mixed sizes.
            features: Names of the features wanted.

        Returns:
            Feature name -> float32 (B, D), on the CPU.
        """
        device = self.extractor.device
        batch = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
        with torch.inference_mode(), _full_float32(), self._autocast(device):
            pixels = self.resizer(batch, self.extractor.input_size)  # (B, 3, h, w)
            output = self.extractor.compute(self.extractor.match_protocol(pixels, self.resizer.name), features)
            found = {name: output[name].float().cpu() for name in features}  # (B, D) each
        # Tensors made in inference mode can't be changed in place later; copies can.
        return {name: values.clone() for name, values in found.items()}

    def _autocast(self, device: torch.device) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=PRECISIONS[self.precision])


@contextmanager
def _full_float32() -> Iterator[None]:
    """Switch off TF32, which torch's convolutions use on a GPU unless told otherwise: it moves a FID in the third digit."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def check_finite(features: dict[str, Tensor], indices: Sequence[int], side: str, extractor: FeatureExtractor) -> None:
    """Raise if a feature is NaN or infinite, naming the image."""
    for name, values in features.items():
        is_bad = ~torch.isfinite(values).all(1)
        if bool(is_bad.any()):
            raise ValueError(
                f"feature {name} of {side} image {indices[int(is_bad.nonzero()[0])]} is NaN or infinite: the weights of "
                f"{extractor.name} are damaged or overflow in this precision."
            )


def microbatch_size(extractors: Sequence[FeatureExtractor], batch_size: int) -> int:
    """Return how many images to run at once: ``batch_size``, on a CPU no more than stay in a core's cache."""
    if any(extractor.device.type != "cpu" for extractor in extractors):
        return batch_size
    return min(batch_size, *(extractor.microbatch for extractor in extractors))


def num_cores(extractors: Sequence[FeatureExtractor]) -> int:
    """Return how many networks run side by side: one per thread torch may use on a CPU, one on a GPU."""
    return 1 if any(extractor.device.type != "cpu" for extractor in extractors) else torch.get_num_threads()


def map_on_cores(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    size: Callable[[Item], int] = lambda item: 0,
    limit: int = 0,
) -> Iterator[Result]:
    """Apply a function to a stream, ``num_workers`` items at a time, and yield the results in order.

    Each worker thread has torch to itself with one thread; torch releases Python's lock while it computes.

    Args:
        function: Called once per item, in any order.
        items: Read only as far ahead as the workers need.
        num_workers: Worker threads; 1 calls the function in this thread, with all of torch's threads.
        size: Bytes of an item.
        limit: Bytes of the items that are out at once; a larger one goes alone.
    """
    if num_workers == 1:
        yield from map(function, items)
        return
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="extract", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[tuple[Future[Result], int]] = deque()
    num_bytes = 0
    try:
        for item in items:
            own_bytes = size(item)
            while waiting and num_bytes + own_bytes > limit:
                future, done_bytes = waiting.popleft()
                yield future.result()
                num_bytes -= done_bytes
            waiting.append((pool.submit(function, item), own_bytes))
            num_bytes += own_bytes
            del item  # It goes with the work on it.
            if len(waiting) >= num_workers * (1 + _QUEUED_PER_WORKER):
                future, done_bytes = waiting.popleft()
                yield future.result()
                num_bytes -= done_bytes
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(num_threads)  # MKL's thread count is one for the whole process.
