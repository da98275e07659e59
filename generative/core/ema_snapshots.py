"""Snapshots of power-function averages, kept for good while a run trains: what averages of any length are made of afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from generative.core.checkpoint import flush_to_disk, remove_leftovers
from generative.core.ema import EMASpec, PowerEMA
from generative.core.errors import UserError
from generative.core.logging import whole_file

FOLDER = "ema-snapshots"
SnapshotType = Literal["float16", "float32"]
TYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class EMASnapshot:
    """A power-function average as it was at some point of a run.

    Attributes:
        path: Its safetensors file.
        network: Name of the network that it is an average of.
        std: Relative standard deviation of its profile.
        images_seen: Training images seen until then.
    """

    path: Path
    network: str
    std: float
    images_seen: int


class EMASnapshotWriter:
    """Writes a run's snapshots, ``RUN/ema-snapshots/AVERAGE/IMAGES.safetensors``; the main process alone tidies and writes.

    Args:
        run: Folder of the run.
        averages: Averages of the objective by name; those with another profile than ``PowerEMA`` are left out.
        interval_images: Images between snapshots; one is also taken at the end.
        dtype: Precision of the weights in the files; buffers keep their own.
        images_per_step: Images of a training step.
        total_images: Images of the whole run.

    Raises:
        UserError: If no average has a power profile.
    """

    def __init__(
        self,
        run: Path,
        averages: Mapping[str, EMASpec],
        interval_images: int,
        dtype: SnapshotType,
        images_per_step: int,
        total_images: int,
    ) -> None:
        self.folder = run / FOLDER
        self.specs = {name: spec for name, spec in averages.items() if isinstance(spec.profile, PowerEMA)}
        if not self.specs:
            raise UserError(
                "trainer.ema_snapshot_interval_images keeps power-function averages, and this run has none; set the objective's "
                "`ema` to generative.core.ema.PowerEMA (two of them tell other lengths best: std 0.05 and 0.10)"
            )
        self.interval_images = interval_images
        self.dtype = TYPES[dtype]
        self.images_per_step = images_per_step
        self.total_images = total_images

    def is_due(self, images_seen: int) -> bool:
        """Whether the step that ends at so many images passed a multiple of the interval, or ends the run."""
        passed = images_seen // self.interval_images > (images_seen - self.images_per_step) // self.interval_images
        return images_seen > 0 and (passed or images_seen >= self.total_images)

    def tidy(self) -> None:
        """Delete what a killed write left."""
        for name in self.specs:
            remove_leftovers(self.folder / name)

    def start(self) -> None:
        """See that snapshots of before are of the same averages; every process may call it.

        Raises:
            UserError: If they are not: combined with those to come they would tell nothing.
        """
        for name, spec in self.specs.items():
            stored = sorted((self.folder / name).glob("*.safetensors"))
            assert isinstance(spec.profile, PowerEMA)
            if stored and not math.isclose(before := read_snapshot(stored[-1]).std, spec.profile.std, rel_tol=1e-6):
                raise UserError(
                    f"'{self.folder / name}' holds snapshots of an average of std {before:.4g}, this run's has "
                    f"{spec.profile.std:.4g}; give the std it began with, or move the snapshots away"
                )

    def describe(self, averages: Mapping[str, nn.Module]) -> str:
        """How many there will be, and the disk they need, in one sentence."""
        count = len(self.specs) * (-(-self.total_images // max(self.interval_images, self.images_per_step)))
        each = max(sum(value.nbytes for value in self._tensors(averages[name], "meta").values()) for name in self.specs)
        return (
            f"EMA snapshots: {', '.join(self.specs)} every {self.interval_images:,} images in '{self.folder}', about {count} "
            f"files of {each / 1e6:,.1f} MB, {count * each / 1e9:,.2f} GB at the end; none is deleted"
        )

    def write(self, averages: Mapping[str, nn.Module], images_seen: int, step: int) -> None:
        """Write the snapshots of a step, each whole or not at all; one that is there with the same content is left alone.

        Args:
            averages: All averages by name.
            images_seen: Training images so far.
            step: Steps done.
        """
        for name, spec in self.specs.items():
            assert isinstance(spec.profile, PowerEMA)
            path = self.folder / name / f"{images_seen:012d}.safetensors"
            facts = {
                "format": "pt",
                "network": spec.network,
                "std": repr(spec.profile.std),
                "images_seen": str(images_seen),
                "step": str(step),
            }
            tensors = self._tensors(averages[name], "cpu")
            if holds(path, tensors, facts):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with whole_file(path) as partial:
                    save_file(tensors, partial, metadata=facts)
                    flush_to_disk(partial)
            except SafetensorError as error:  # how safetensors reports a full disk
                raise UserError(f"'{path}' cannot be written: {error}; free some space and go on with --resume latest") from error
            flush_to_disk(path.parent)

    def _tensors(self, average: nn.Module, device: str) -> dict[str, Tensor]:
        """Weights in the precision of the files; buffers, and weights that half precision cannot hold, stay as they are."""
        weights = {name for name, _ in average.named_parameters()}
        found = {}
        for name, value in average.state_dict().items():
            if device == "meta":  # where the network may be cut over processes, and nothing but sizes is asked for
                value = torch.empty(value.shape, dtype=value.dtype, device=device)
            kept = value.detach().to(device).contiguous()
            halved = kept.to(self.dtype) if name in weights else kept
            found[name] = halved if device == "meta" or bool(halved.isfinite().all()) else kept
        return found


def holds(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bool:
    """Whether a file is there and holds just these tensors and facts."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != facts or set(file.keys()) != set(tensors):
                return False
            return all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    except (OSError, SafetensorError):
        return False


def read_snapshot(path: Path) -> EMASnapshot:
    """Read what a snapshot says of itself; no weights.

    Raises:
        UserError: If it is damaged, or no snapshot.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        return EMASnapshot(path, facts["network"], float(facts["std"]), int(facts["images_seen"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' is damaged or no EMA snapshot ({error}); move it away") from error


def list_snapshots(run: Path) -> list[EMASnapshot]:
    """Snapshots of a run, by average and images seen.

    Raises:
        UserError: If one is damaged.
    """
    return [read_snapshot(path) for path in sorted((run / FOLDER).glob("*/*.safetensors")) if not path.name.startswith(".")]
