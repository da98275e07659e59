"""``generative edit``: draw a part of an image anew with a VAR that was never trained for it (arXiv 2404.02905, section 5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from generative.cli.arguments import CommandParser
from generative.cli.option_flags import add_option_flags, chosen_options
from generative.cli.sampling import move_pipeline, parse_class_labels
from generative.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.var import VARPipeline

EPILOG = """Three tasks, one mechanism: tokens that are kept are the image's own at every scale, the others are drawn.
  generative edit runs/cifar10-var --image cat.png --box 8,8,24,24 --output edited.png
  generative edit runs/cifar10-var --image cat.png --box 8,8,24,24 --mode outpaint --output edited.png
  generative edit runs/cifar10-var --image cat.png --box 8,8,24,24 --mode class --class-labels 3,5 --guidance-scale 4
inpaint   draw what is inside the box anew, from the rest of the image alone (with --class-labels: also from the class)
outpaint  draw what is outside of it
class     draw an object of another class into the box
The output is a grid with a row for each class (or one): the image, the image without what is drawn anew, and the results.
An image of another size is resized and cropped to the centre square first; the box counts pixels after that."""
MODES = ("inpaint", "outpaint", "class")
GREY = 128
"""Stands for what is drawn anew in the grid's second column, in [0, 255]."""
MIN_TILE = 64
"""Least side of an image in the grid, in pixels: smaller ones are enlarged."""
MAX_IMAGES = 64


def box_corners(text: str) -> tuple[int, int, int, int]:
    """Parse left, top, right and bottom, with commas between them."""
    left, top, right, bottom = (int(part) for part in text.split(","))
    return left, top, right, bottom


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    from pipelines import options_classes

    parser = CommandParser("generative edit", "Draw a part of an image anew with a VAR.", EPILOG)
    parser.add_argument("folder", metavar="RUN_OR_PIPELINE_DIR", type=Path, help="a run of VAR, or a folder of its pipeline")
    parser.add_argument("--image", metavar="FILE", type=Path, required=True, help="the image to edit")
    parser.add_argument(
        "--box", metavar="LEFT,TOP,RIGHT,BOTTOM", type=box_corners, required=True, help="in pixels, right and bottom not included"
    )
    parser.add_argument("--mode", choices=MODES, default="inpaint", help="default inpaint")
    parser.add_argument(
        "--class-labels",
        metavar="0,1,2",
        help="numbers or names of what to draw, a row of results for each; --mode class needs it",
    )
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="results to a row (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--output", type=Path, default=Path("edited.png"), metavar="FILE.png", help="default edited.png")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: CUDA where there is one)")
    families = [options_classes()["VARPipeline"]]
    add_option_flags(parser, families)
    given = vars(parser.parse_args(arguments))
    chosen = chosen_options(given, families)
    return edit(chosen, **given)


def edit(
    options: dict[str, Any],
    folder: Path,
    image: Path,
    box: tuple[int, int, int, int],
    mode: str,
    class_labels: str | None,
    num_images: int,
    seed: int,
    output: Path,
    device: str | None,
) -> int:
    """Edit and write the grid; returns the exit code."""
    check_arguments(mode, class_labels, num_images, output)
    import torch

    from generative.core.images import images_to_float
    from generative.core.logging import save_grid
    from generative.core.runtime import build_accelerator
    from generative.core.seeding import sample_generators
    from generative.data.image_files import ImageFilesDataset

    pipeline = load_var(folder)
    pipeline.check_options(**options)
    labels = None if class_labels is None else parse_class_labels(class_labels, pipeline, in_order=True)
    original = ImageFilesDataset([image], pipeline.image_size).image(0)  # (3, H, W) uint8
    mask = box_mask(box, pipeline.image_size, is_outside=mode == "outpaint")  # (H, W) bool
    accelerator = build_accelerator()
    if not accelerator.is_main_process:
        return 0
    move_pipeline(pipeline, device, accelerator)
    pipeline.set_progress_bar_config(disable=True)
    images = images_to_float(original[None].expand(num_images, -1, -1, -1)).to(pipeline.device)
    rows = []
    for label in [None] if labels is None else labels:
        # The null condition has a stream of its own, beside those of the classes.
        generators = sample_generators(seed, [pipeline.num_classes if label is None else label] * num_images, range(num_images))
        wanted = None if label is None else [label] * num_images
        (results,) = pipeline.edit(images, mask, wanted, generator=generators, output_type="uint8", return_dict=False, **options)
        rows.append(torch.cat([original[None], blank(original, mask)[None], cast("Tensor", results).cpu()]))
    names = pipeline.class_names
    row_names = None if names is None or labels is None else [names[label] for label in labels]
    save_grid(torch.cat(rows), output, columns=2 + num_images, min_tile=MIN_TILE, row_names=row_names)
    print(f"{len(rows) * num_images} edited images in '{output}'")
    return 0


def check_arguments(mode: str, class_labels: str | None, num_images: int, output: Path) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        UserError: Naming the flag.
    """
    if mode == "class" and class_labels is None:
        raise UserError("--mode class draws an object of a class; name it with --class-labels")
    if not 1 <= num_images <= MAX_IMAGES:
        raise UserError(f"--num-images must be in 1..{MAX_IMAGES}, got {num_images}")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise UserError(f"--output '{output}' must be the name of a .png file")


def load_var(folder: Path) -> VARPipeline:
    """Load the pipeline of a VAR.

    Raises:
        UserError: If it is another one's.
    """
    from pipelines import load_pipeline
    from pipelines.var import VARPipeline

    pipeline = load_pipeline(folder)
    if not isinstance(pipeline, VARPipeline):
        raise UserError(f"'{folder}' holds a {type(pipeline).__name__}, which cannot edit images; give a run of VAR")
    return pipeline


def box_mask(box: tuple[int, int, int, int], size: int, is_outside: bool) -> Tensor:
    """(size, size) bool: True inside a box, or outside of it.

    Raises:
        UserError: If the box is not inside the image, is empty, or leaves nothing to keep.
    """
    import torch

    left, top, right, bottom = box
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(
            f"--box {','.join(map(str, box))} must be left,top,right,bottom with 0 <= left < right <= {size}, and the same "
            "for top and bottom"
        )
    if box == (0, 0, size, size):
        raise UserError("--box is the whole image, so that nothing is kept, or nothing drawn; give a part of it")
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return ~mask if is_outside else mask


def blank(image: Tensor, mask: Tensor) -> Tensor:
    """The image (3, H, W) uint8 with grey where the mask (H, W) is True."""
    return image.masked_fill(mask, GREY)
