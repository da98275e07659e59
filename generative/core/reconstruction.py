"""Scores of a tokenizer on held-out images: how much of an image survives encoding and decoding."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from generative.core.errors import UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.scoring_passes import gather_local
from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset

if TYPE_CHECKING:
    from metrics.scores.lpips import LPIPS
    from metrics.suite import MetricSuite
    from pipelines.base import ImagePipeline

FRECHET = "reconstruction_frechet_distance"
"""Name of the distance between reconstructions and their originals: rFID where the extractor is Inception-v3."""
MAX_PSNR = 100.0
"""Decibels that an image counts which is reconstructed exactly, whose ratio is infinite: else one made the mean infinite."""


class ReconstructionEvaluator(Evaluator):
    """Reconstructs held-out images and compares them with the originals, as sets (Frechet distance) and one by one.

    Args:
        data: Held-out real images.
        extractor: Feature extractor of the Frechet distance, see ``Evaluator``.
        weights: File of its weights.
        input_size: Pixels it sees.
        resizer: Its resizer.
        num_images: Only so many of the images, the first; None for all (papers: ImageNet's 50,000 of the validation set).
        batch_size: Images reconstructed at a time on each process.
        lpips_vgg_weights: File of torchvision's VGG16; with ``lpips_linear_weights``, LPIPS is measured too.
        lpips_linear_weights: File of LPIPS's linear layers, see ``metrics.scores.lpips``.

    Raises:
        UserError: If an argument is out of range or one LPIPS file is given without the other.
    """

    def __init__(
        self,
        data: ImageDataset,
        extractor: str = "inception-v3",
        weights: Path | None = None,
        input_size: int | None = None,
        resizer: str | None = None,
        num_images: int | None = None,
        batch_size: int = 100,
        lpips_vgg_weights: Path | None = None,
        lpips_linear_weights: Path | None = None,
    ) -> None:
        if (lpips_vgg_weights is None) != (lpips_linear_weights is None):
            raise UserError("LPIPS needs both lpips_vgg_weights and lpips_linear_weights; give both or neither")
        if batch_size < 1:
            raise UserError(f"evaluation batch_size must be at least 1, got {batch_size}")
        count = len(data) if num_images is None else num_images
        if count > len(data):
            raise UserError(f"evaluation num_images is {count}, but the data has {len(data)} images; lower it or set it to null")
        super().__init__(data, extractor, weights, input_size, ("frechet",), resizer, count, batch_size)
        self.lpips_files = (lpips_vgg_weights, lpips_linear_weights)
        self._lpips: LPIPS | None = None

    def check_pipeline(self, pipeline: ImagePipeline) -> None:
        """Refuse a pipeline that reconstructs nothing."""
        if not hasattr(pipeline, "reconstruct"):
            raise UserError(f"a {type(pipeline).__name__} reconstructs no images; score it with {pipeline.evaluator}")

    def match_classes(self, training: ImageDataset) -> list[str]:
        """Nothing: a reconstruction is of an image, whatever its class."""
        return []

    def prepare(self, accelerator: Accelerator, progress: bool = False) -> None:
        """Load the extractor and LPIPS's network; see ``Evaluator.prepare``."""
        super().prepare(accelerator, progress)
        vgg, linear = self.lpips_files
        if vgg is not None and linear is not None and self._lpips is None:
            from metrics.scores.lpips import LPIPS

            try:
                self._lpips = LPIPS.from_files(vgg, linear).to(accelerator.device)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(f"evaluation: {error}") from error

    def prepare_or_skip(self, accelerator: Accelerator, training: ImageDataset) -> None:
        """As ``Evaluator.prepare_or_skip``; where a file of LPIPS is absent, only LPIPS is left out."""
        files = [Path(file) for file in self.lpips_files if file is not None]
        absent = [file for file in files if not file.is_file()]
        if accelerator.num_processes > 1:
            absent = [file for part in gather_local(absent) for file in part]
        if absent:
            self.lpips_files = (None, None)
            if accelerator.is_main_process:
                print(
                    f"note: LPIPS is not measured, as there is no file {absent[0]}: put it there (see metrics.scores.lpips)",
                    file=sys.stderr,
                )
        super().prepare_or_skip(accelerator, training)

    def evaluate(
        self, pipeline: ImagePipeline, accelerator: Accelerator, options: Mapping[str, Any], progress: bool = False
    ) -> Evaluation:
        """Reconstruct the held-out images and score.

        Args:
            pipeline: One with ``reconstruct``, on the accelerator's device.
            accelerator: Its processes share the images; every process gets the result.
            options: Of ``reconstruct``.
            progress: Show progress bars.

        Raises:
            UserError: If the pipeline makes images of classes.
        """
        self.check_pipeline(pipeline)
        suite = self._reference_suite(accelerator, progress)
        suite.reset_fake()
        pairwise: dict[str, list[Tensor]] = {}
        for indices in self._batches(accelerator):
            originals = self.data.images(indices)
            reconstructions = self.reconstruct(pipeline, originals, indices, options).cpu()
            suite.update(reconstructions, real=False, indices=indices)
            for name, values in self.compare(originals, reconstructions).items():
                pairwise.setdefault(name, []).append(values)
        if accelerator.num_processes > 1:
            suite.gather(gather_local)
        totals = [(name, float(torch.cat(values).double().sum())) for name, values in pairwise.items()]
        sums = gather_object(totals) if accelerator.num_processes > 1 else totals
        scores = {FRECHET: self._frechet()}
        for name in dict.fromkeys(name for name, _ in sums):
            scores[name] = sum(value for other, value in sums if other == name) / self.num_samples
        return Evaluation(scores, self._protocol())

    def reconstruct(self, pipeline: ImagePipeline, originals: Tensor, indices: Tensor, options: Mapping[str, Any]) -> Tensor:
        """What is compared with the originals.

        Args:
            pipeline: One with ``reconstruct``.
            originals: (B, 3, H, W) uint8.
            indices: (B,) their places in ``data``.
            options: Not used: a reconstruction of a tokenizer has none.

        Returns:
            (B, 3, H, W) uint8.
        """
        reconstructions: Tensor = pipeline.reconstruct(originals)
        return reconstructions

    def compare(self, originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """Compare images one by one.

        Args:
            originals: (B, 3, H, W) uint8.
            reconstructions: (B, 3, H, W) uint8.

        Returns:
            Values (B,) by name: ``psnr`` in decibels, ``ssim`` (of images it has room for), ``lpips`` where weights were given.
        """
        from metrics.scores.lpips import lpips
        from metrics.scores.psnr import psnr
        from metrics.scores.ssim import WINDOW, ssim

        values = {"psnr": psnr(originals, reconstructions).clamp(max=MAX_PSNR)}
        if min(originals.shape[2:]) >= WINDOW:
            values["ssim"] = ssim(originals, reconstructions)
        if self._lpips is not None:
            values["lpips"] = lpips(self._lpips, originals, reconstructions)
        return values

    def score_real(self, data: ImageDataset, accelerator: Accelerator) -> Evaluation:
        """Frechet distance of as many other real images, drawn at random: a tokenizer should come out far below it.

        Args:
            data: Real images other than the held-out ones, for example the training images.
            accelerator: Its device runs the extractor; call this after ``evaluate``, on one process or all.
        """
        given = data.indices_with_images()
        order = given[torch.randperm(len(given), generator=keyed_generator(self.seed, "score_real"))][: self.num_samples]
        suite = self._reference_suite(accelerator, progress=False)
        suite.reset_fake()
        for indices in order.split(suite.batch_size):
            suite.update(data.images(indices), real=False)
        return Evaluation({FRECHET: self._frechet()}, self._protocol())

    def _frechet(self) -> float:
        (distance,) = self._suite.compute().values()
        return distance

    def _reference_suite(self, accelerator: Accelerator, progress: bool) -> MetricSuite:
        """The metric with the features of the originals, those that are reconstructed and no others."""
        if not self._has_reference:
            self.prepare(accelerator, progress)
            self._has_reference = True
            for indices in self._batches(accelerator):
                self._suite.update(self.data.images(indices), real=True, indices=indices)
        return self._suite

    @property
    def _suite(self) -> MetricSuite:
        """The one network and its one metric."""
        assert self._suites is not None
        return self._suites[0]

    def directions(self) -> dict[str, bool]:
        """Nothing: the scores have names of their own."""
        return {}

    def _batches(self, accelerator: Accelerator) -> list[Tensor]:
        """This process's share of the images, by index."""
        mine = torch.arange(accelerator.process_index, self.num_samples, accelerator.num_processes)
        return list(mine.split(self.batch_size))

    def _protocol(self) -> dict[str, Any]:
        return {
            **self._suite.protocol,
            "reference": f"{type(self.data).__name__} {self.data.fingerprint}",
            "reconstructed": f"the first {self.num_samples} of {len(self.data)}",
        }
