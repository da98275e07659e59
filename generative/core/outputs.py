"""Where samples go: a folder of PNG files with a manifest that can be resumed, or one npz file as the ADM evaluator reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.logging import write_json

MANIFEST = "manifest.json"


def image_name(request: SampleRequest) -> str:
    """File name of a sample; names sort in class order."""
    return f"class-{request.class_label:04d}_image-{request.index:06d}.png"


class ImageFolderWriter:
    """Writes samples as PNG files; an interrupted run goes on where it stopped.

    Args:
        folder: The folder.
        settings: What the images depend on (pipeline, seed, options); a folder with other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output '{folder}' is a file; give a folder, or a name that ends in .npz")
        if folder.is_dir() and any(folder.iterdir()):
            try:
                previous = json.loads((folder / MANIFEST).read_text())["settings"]
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"output folder '{folder}' is not empty and holds no samples of ours; choose another") from error
            if previous != json.loads(json.dumps(settings)):
                raise UserError(f"output folder '{folder}' holds samples of other settings (see its {MANIFEST}); choose another")

    def missing(self, requests: Sequence[SampleRequest]) -> list[SampleRequest]:
        """Requests whose file is not there yet."""
        return [r for r in requests if not (self.folder / image_name(r)).exists()]

    def start(self, requests: Sequence[SampleRequest]) -> None:
        """Write the manifest: settings, and the class of every file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.partial"):
            leftover.unlink()
        images = [{"file": image_name(r), "class_label": r.class_label, "index": r.index} for r in requests]
        write_json(self.folder / MANIFEST, {"settings": self.settings, "images": images})

    def write(self, requests: Iterable[SampleRequest], images: Tensor) -> None:
        """Write a batch (B, 3, H, W) uint8, each file under a temporary name first."""
        for request, array in zip(requests, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            path = self.folder / image_name(request)
            partial = path.with_name(f".{path.name}.partial")
            Image.fromarray(array).save(partial, format="PNG")
            os.replace(partial, path)


def write_npz(path: Path, images: Tensor, requests: Sequence[SampleRequest]) -> None:
    """Write samples as one npz: ``arr_0`` (N, H, W, 3) uint8 and ``arr_1`` (N,) int64 labels.

    Args:
        path: The file; written under a temporary name and renamed.
        images: (N, 3, H, W) uint8, in the order of ``requests``.
        requests: What each image is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.asarray([r.class_label for r in requests], dtype=np.int64)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, images.permute(0, 2, 3, 1).cpu().numpy(), labels)
    os.replace(partial, path)
