"""``generative sample --interpolate``: interpolation between images of a GAN, as a grid, an animation or a folder of frames."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.option_flags import check_flags
from generative.cli.sampling import check_counts, move_pipeline, parse_class_labels
from generative.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

GRID_SUFFIX = ".png"
ANIMATION_SUFFIXES = (".gif", ".webp", ".apng")
NUM_FRAMES = 8
NUM_ANIMATION_FRAMES = 24
FRAMES_PER_SECOND = 12.0
MAX_FRAMES_PER_SECOND = 50.0
"""Browsers slow down what asks for less than 20 ms a frame."""
MIN_TILE = 64
"""Least side of an image in a picture, in pixels: smaller ones are enlarged."""
MAX_PICTURE_ROWS = 100
"""Interpolations in one picture: beyond, nobody sees anything, and viewers refuse the file."""


def interpolate(
    options: dict[str, Any],
    kind: str,
    frames: int | None,
    path: str | None,
    fps: float | None,
    loop: bool | None,
    folder: Path,
    average: str | None,
    class_labels: str,
    num_images_per_class: int | None,
    seed: int,
    batch_size: int,
    output: Path | None,
    device: str | None,
) -> int:
    """Interpolate between images and write a grid, an animation or a folder of frames; returns the exit code.

    An interpolation of latents goes from image n of a class to image n + 1, as plain sampling with this seed makes them; one of
    classes starts at image n of its first class.
    """
    output = output or Path("interpolation.png")
    rows_each = 1 if num_images_per_class is None else num_images_per_class
    check_counts(rows_each, batch_size)
    check_interpolation(kind, output, frames, path, fps, loop)
    from generative.core.logging import progress_interval
    from generative.core.runtime import build_accelerator
    from generative.core.seeding import sample_generators
    from pipelines import load_pipeline

    pipeline = load_pipeline(folder, average)
    if not hasattr(pipeline, "interpolate_latents"):
        raise UserError(f"{type(pipeline).__name__} cannot interpolate, only a GAN's pipeline can; leave --interpolate out")
    check_flags(type(pipeline).__name__, options, pipeline.options_class)
    pipeline.check_options(**options)
    labels = parse_class_labels(class_labels, pipeline, in_order=kind == "class")
    starts = [(label, n) for label in (labels[:-1] if kind == "class" else labels) for n in range(rows_each)]
    if not starts:
        raise UserError(f"--interpolate class goes from class to class: name two or more, got --class-labels {class_labels}")
    if len(starts) > MAX_PICTURE_ROWS and output.suffix:
        raise UserError(
            f"{len(starts)} interpolations are too many for one picture; name fewer --class-labels, or give a folder as --output"
        )
    num_frames = frames or (NUM_ANIMATION_FRAMES if output.suffix.lower() in ANIMATION_SUFFIXES else NUM_FRAMES)
    accelerator = build_accelerator()
    if not accelerator.is_main_process:
        return 0
    move_pipeline(pipeline, device, accelerator)
    pipeline.set_progress_bar_config(desc="sampling", unit="batch", leave=False, mininterval=progress_interval())
    common = {**options, "num_frames": num_frames, "batch_size": batch_size, "output_type": "uint8"}
    classes = [label for label, _ in starts]
    if kind == "latent":
        ends = [(label, n + step) for label, n in starts for step in (0, 1)]
        noise = sample_generators(seed, [label for label, _ in ends], [n for _, n in ends])
        images = pipeline.interpolate_latents(classes, generator=noise, path=path or "spherical", **common).images
    else:
        following = dict(pairwise(labels))
        noise = sample_generators(seed, classes, [n for _, n in starts])
        images = pipeline.interpolate_classes(classes, [following[c] for c in classes], generator=noise, **common).images
    names = pipeline.class_names
    row_names = None
    if names is not None:
        row_names = [names[c] if kind == "latent" else f"{names[c]} > {names[following[c]]}" for c in classes]
    write_interpolations(images.cpu().unflatten(0, (-1, num_frames)), output, fps or FRAMES_PER_SECOND, bool(loop), row_names)
    print(f"{len(starts)} interpolations of {num_frames} frames in '{output}'")
    return 0


def check_interpolation(
    kind: str, output: Path, frames: int | None, path: str | None, fps: float | None, loop: bool | None
) -> None:
    """Refuse what cannot be drawn, before anything is loaded.

    Raises:
        UserError: Naming the flag.
    """
    suffix = output.suffix.lower()
    if frames is not None and frames < 2:
        raise UserError(f"--frames must be at least 2, the two ends of an interpolation, got {frames}")
    if path is not None and kind == "class":
        raise UserError(
            "--path is the way from noise to noise; classes are mixed linearly, leave it out with --interpolate class"
        )
    if fps is not None and not 0 < fps <= MAX_FRAMES_PER_SECOND:
        raise UserError(f"--fps must be above 0 and at most {MAX_FRAMES_PER_SECOND:g}, got {fps:g}")
    for flag, value in (("--fps", fps), ("--loop", loop)):
        if value is not None and suffix not in ANIMATION_SUFFIXES:
            raise UserError(f"{flag} is for animations, and '{output}' is none; give an --output in .gif, .webp or .apng")
    if suffix and suffix not in (GRID_SUFFIX, *ANIMATION_SUFFIXES):
        raise UserError(
            f"--output '{output}' is of no kind that interpolations are written as; give a name in .png (grid), .gif, .webp or "
            ".apng (animation), or a folder without a suffix"
        )
    if suffix and output.is_dir():
        raise UserError(f"--output '{output}' is a folder; give a file name, or a folder without a suffix")
    if not suffix and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output '{output}' is there already; give a folder that is new or empty")


def write_interpolations(rows: Tensor, output: Path, fps: float, back: bool, row_names: list[str] | None) -> None:
    """Write interpolations (R, F, 3, H, W) uint8 as what the output's suffix says; a grid shows the names of its rows."""
    from generative.core.logging import save_grid
    from generative.core.outputs import write_animation, write_frames

    suffix = output.suffix.lower()
    if suffix == GRID_SUFFIX:
        save_grid(rows.flatten(0, 1), output, columns=rows.shape[1], min_tile=MIN_TILE, row_names=row_names)
    elif suffix:
        write_animation(rows, output, fps, back, MIN_TILE)
    else:
        write_frames(rows, output)
