"""Where samples go: a folder of PNG files with a manifest that can be resumed, one npz file as the ADM evaluator reads it, or,
for frames between images, an animation or a folder of frames."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from PIL import Image, features
from torch import Tensor

from generative.core.checkpoint import write_folder
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.lock import hold_folder
from generative.core.logging import grid_image, whole_file, write_json

MANIFEST = "manifest.json"

# Suffix of an animation -> Pillow's name of the format, and how it is saved; all three play for ever.
ANIMATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".apng": ("PNG", {}),
}


def image_name(request: SampleRequest) -> str:
    """File name of a sample; names sort in class order."""
    return f"class-{request.class_label:04d}_image-{request.index:06d}.png"


def decisive(settings: Any) -> Any:
    """Settings that images depend on: all but the training step, which older folders lack and the pipeline implies."""
    return {key: value for key, value in settings.items() if key != "step"} if isinstance(settings, dict) else settings


class ImageFolderWriter:
    """Writes samples as PNG files; an interrupted run goes on where it stopped.

    Args:
        folder: The folder.
        settings: What the images depend on (pipeline, seed, options); a folder with other settings is refused.
        class_names: Names of the pipeline's classes, for the manifest; None if they are not known.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], class_names: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.class_names = class_names
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output '{folder}' is a file; give a folder, or a name that ends in .npz")
        self.previous: list[dict[str, Any]] = []
        if folder.is_dir() and not all(path.match(".*.partial") for path in folder.iterdir()):
            try:
                manifest = json.loads((folder / MANIFEST).read_text())
                found, self.previous = manifest["settings"], list(manifest["images"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"output folder '{folder}' is not empty and holds no samples of ours; choose another") from error
            # Without a single image, a run with a mistake in its options has left the manifest: nothing to protect.
            self.previous = [entry for entry in self.previous if (folder / entry["file"]).exists()]
            if self.previous and decisive(found) != decisive(json.loads(json.dumps(settings))):
                raise UserError(f"output folder '{folder}' holds samples of other settings (see its {MANIFEST}); choose another")

    def missing(self, requests: Sequence[SampleRequest]) -> list[SampleRequest]:
        """Requests whose file is not there yet."""
        return [r for r in requests if not (self.folder / image_name(r)).exists()]

    def start(self, requests: Sequence[SampleRequest]) -> None:
        """Write the manifest: settings, names of classes, and the class of every file, those of earlier runs included."""
        self.folder.mkdir(parents=True, exist_ok=True)
        hold_folder(self.folder)
        for leftover in self.folder.glob(".*.partial"):
            leftover.unlink()
        images = {entry["file"]: entry for entry in self.previous}
        for request in requests:
            name = image_name(request)
            images[name] = {"file": name, "class_label": request.class_label, "index": request.index}
        ordered = sorted(images.values(), key=lambda entry: (entry["class_label"], entry["index"]))
        names = {} if self.class_names is None else {"class_names": list(self.class_names)}
        write_json(self.folder / MANIFEST, {"settings": self.settings, **names, "images": ordered})

    def write(self, requests: Iterable[SampleRequest], images: Tensor) -> None:
        """Write a batch (B, 3, H, W) uint8, each file under a temporary name first."""
        for request, array in zip(requests, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            path = self.folder / image_name(request)
            with whole_file(path) as partial:
                Image.fromarray(array).save(partial, format="PNG")


def write_npz(
    path: Path,
    batches: Iterable[tuple[Sequence[int], Tensor]],
    requests: Sequence[SampleRequest],
    class_names: Sequence[str] | None = None,
) -> None:
    """Write samples as one npz: ``arr_0`` (N, H, W, 3) uint8, ``arr_1`` (N,) int64 labels and ``class_names``, texts.

    The images go to disk as they come, byte for byte as ``numpy.savez`` would write them; held are only those that come before
    their turn.

    Args:
        path: The file; written under a temporary name and renamed.
        batches: Positions in ``requests``, each once, and their images (B, 3, H, W) uint8.
        requests: What each image is; at least one.
        class_names: Names of the pipeline's classes in the order of their labels; None leaves them out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"arr_1": np.asarray([r.class_label for r in requests], dtype=np.int64)}
    if class_names is not None:
        arrays["class_names"] = np.asarray(class_names, dtype=np.str_)
    with whole_file(path) as partial, ZipFile(partial, "w", ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for number, image in enumerate(in_order(batches)):
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(requests), *image.shape)}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(image.tobytes())
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def in_order(batches: Iterable[tuple[Sequence[int], Tensor]]) -> Iterator[np.ndarray]:
    """Images (H, W, 3) by their positions 0, 1, ..., each as soon as those before it are there.

    Args:
        batches: Positions, and their images (B, 3, H, W) uint8.
    """
    waiting: dict[int, np.ndarray] = {}
    position = 0
    for positions, images in batches:
        waiting.update(zip(positions, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True))
        while position in waiting:
            yield waiting.pop(position)
            position += 1


def write_animation(frames: Tensor, path: Path, frames_per_second: float, back: bool = False, min_tile: int = 64) -> None:
    """Write frames as an animated GIF, WebP or PNG that plays for ever, whole or not at all.

    Args:
        frames: (R, F, 3, H, W) uint8: the R rows play side by side, in a grid as square as can be.
        path: The file; its suffix, one of ``ANIMATIONS``, names the format.
        frames_per_second: Rounded to what the format can say: whole milliseconds, in a GIF hundredths of a second.
        back: Play the frames between the ends once more in reverse, so that the animation has no jump.
        min_tile: Least side of an image, in pixels; see ``grid_image``.

    Raises:
        UserError: If this Pillow cannot write WebP.
    """
    kind, options = ANIMATIONS[path.suffix.lower()]
    if kind == "WEBP" and not features.check("webp"):
        raise UserError(f"this installation of Pillow writes no WebP; give '{path.with_suffix('.gif')}' or a name in .apng")
    columns = math.ceil(math.sqrt(len(frames)))
    pictures = [grid_image(frame, columns, min_tile) for frame in frames.unbind(1)]
    if back:
        pictures += pictures[-2:0:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        first, *others = pictures
        first.save(
            partial, kind, save_all=True, append_images=others, duration=round(1000 / frames_per_second), loop=0, **options
        )


def write_frames(frames: Tensor, folder: Path) -> None:
    """Write frames as PNG files ``row-R_frame-F.png`` into a new folder, whole or not at all.

    Args:
        frames: (R, F, 3, H, W) uint8.
        folder: The folder, which must be empty or not exist.
    """

    def fill(partial: Path) -> None:
        for row, images in enumerate(frames.permute(0, 1, 3, 4, 2).cpu().numpy()):
            for number, array in enumerate(images):
                Image.fromarray(array).save(partial / f"row-{row:04d}_frame-{number:04d}.png")

    write_folder(folder, fill)
