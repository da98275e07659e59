"""Originals beside their reconstructions: pairs for a grid, and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from generative.core.errors import UserError
from generative.core.images import images_to_uint8
from generative.core.logging import progress_interval
from generative.core.reconstruction import MAX_PSNR
from generative.data.base import ImageDataset
from generative.data.cache_statistics import code_statistics
from generative.tokenizers.base import ImageTokenizer
from metrics.notes import notes_of_warnings
from metrics.scores.psnr import psnr
from metrics.scores.ssim import WINDOW, ssim

if TYPE_CHECKING:
    from metrics.suite import MetricSuite
    from pipelines.reconstruction import ImageReconstructionPipeline

GRID_PAIRS, GRID_COLUMNS = 64, 8
"""Pairs of original and reconstruction in the grid, and pairs to a row."""


class Comparison:
    """Reconstructs images batch by batch and compares them with the originals.

    Args:
        pipeline: Reconstructs.
        images: The originals.
        count: How many of them, from the first on.
        suite: Frechet distance; None for none.
    """

    def __init__(
        self, pipeline: ImageReconstructionPipeline, images: ImageDataset, count: int, suite: MetricSuite | None
    ) -> None:
        self.pipeline = pipeline
        self.images = images
        self.count = count
        self.suite = suite
        #: What a reader of the scores must know, in sentences; complete once they were asked for.
        self.notes: list[str] = []
        self._pairs: list[Tensor] = []
        self._values: dict[str, float] = {}
        self._codes: Tensor | None = None
        self._scores: dict[str, Any] | None = None

    def run(self, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Reconstruct all.

        Yields:
            Indices, and reconstructions (B, 3, H, W) uint8.
        """
        with tqdm(total=self.count, desc="reconstructing", unit="img", leave=False, mininterval=progress_interval()) as bar:
            for start in range(0, self.count, batch_size):
                indices = list(range(start, min(start + batch_size, self.count)))
                originals = self.images.images(indices)  # (B, 3, H, W)
                codes = self.pipeline.encode(originals)
                decoded = self.pipeline.decode(codes)
                if not bool(torch.isfinite(decoded).all()):
                    raise UserError("the network makes NaN or infinite pixels; its weights have diverged")
                results = images_to_uint8(decoded).cpu()  # (B, 3, H, W)
                self._compare(originals, results, codes)
                bar.update(len(indices))
                yield indices, results

    def _compare(self, originals: Tensor, results: Tensor, codes: Tensor) -> None:
        shown = sum(len(pair) for pair in self._pairs) // 2
        pairs = torch.stack([originals, results], dim=1)[: GRID_PAIRS - shown]  # (B, 2, 3, H, W)
        self._pairs.append(pairs.flatten(0, 1))
        values = {"psnr": psnr(originals, results).clamp(max=MAX_PSNR)}
        if originals.shape[-1] >= WINDOW:
            values["ssim"] = ssim(originals, results)
        for name, value in values.items():
            self._values[name] = self._values.get(name, 0.0) + float(value.sum())
        network = self.pipeline.tokenizer
        if isinstance(network, ImageTokenizer):
            counts = torch.bincount(codes.flatten().cpu(), minlength=network.num_codes)
            self._codes = counts if self._codes is None else self._codes + counts
        if self.suite is not None:
            self.suite.update(originals, real=True)
            self.suite.update(results, real=False)

    def grid(self) -> Tensor:
        """(M, 3, H, W) uint8: the first originals, each followed by its reconstruction."""
        return torch.cat(self._pairs)

    def scores(self) -> dict[str, Any]:
        """Scores by name, and the Frechet distance's protocol; to be asked for after all images were run."""
        if self._scores is not None:
            return self._scores
        result: dict[str, Any] = {"num_images": self.count}
        result.update({name: value / self.count for name, value in self._values.items()})
        if self._codes is not None:
            result.update(code_statistics(self._codes.numpy()), num_codes=len(self._codes))
        if self.suite is not None:
            with notes_of_warnings(self.notes):
                (result["reconstruction_frechet_distance"],) = self.suite.compute().values()
            result["protocol"] = self.suite.protocol
            result["notes"] = self.notes
        self._scores = result
        return result

    def summary(self) -> str:
        """The scores in one line."""
        scores = self.scores()
        parts = [f"PSNR {scores['psnr']:.2f} dB"]
        parts.append(f"SSIM {scores['ssim']:.4f}" if "ssim" in scores else "no SSIM (images are smaller than its window)")
        if "codes_used" in scores:
            bits = math.log2(scores["num_codes"])
            parts.append(
                f"{scores['codes_used']} of {scores['num_codes']} codes used (entropy {scores['entropy_per_token']:.2f} of "
                f"{bits:.2f} bits)"
            )
        if self.suite is not None:
            parts.append(
                f"Frechet distance {scores['reconstruction_frechet_distance']:.3f} to the originals on "
                f"{self.suite.extractor.name}, {self.count} images"
            )
        return ", ".join(parts)
