"""``generative sample``: load a pipeline of any family, sample, and write PNG files or one npz, or interpolate between images."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.cascade import attach_upsampler, stage_of
from generative.cli.guides import GuideFlags, add_guide_flags, attach_guides, take_guide_flags
from generative.cli.option_flags import add_option_flags, check_flags, chosen_options
from generative.cli.sampling import ALL_CLASSES, check_counts, move_pipeline, parse_class_labels
from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from generative.core.generation import SampleRequest
    from generative.core.rejection import ClassifierJudge
    from generative.core.runtime import Precision
    from pipelines.base import ImageGenerationPipeline

    Batch = tuple[list[int], Tensor]

EPILOG = """Which sampling options a pipeline takes depends on its family; one it has no use for is refused.
  generative sample runs/digits-dit --class-labels 0,1,2 --num-images-per-class 10 --guidance-scale 2 --output samples/
  generative sample runs/digits-sagan --class-labels all --truncation 0.7 --output samples.npz
  generative sample runs/pets --class-labels cat,dog  # names of the training data's classes, kept in the run
  generative sample runs/digits-dit/checkpoint-00001000 --output samples-1000/
  generative sample runs/cifar10-dit --guide runs/cifar10-dit --guide-step 2000 --guide-scale 2 --guide-interval 0.2,0.8
  generative sample runs/cifar10-adm --classifier runs/cifar10-adm_classifier --classifier-scale 1 --guidance-scale 1.5
  generative sample runs/cifar10-dit --sampler heun:churn=40 --num-inference-steps 18 --output samples-heun/
  generative sample runs/imagenet-adm_64 --upsampler runs/imagenet-adm_upsampler_64_256 --num-inference-steps 250 \\
    --upsampler-num-inference-steps 250 --output samples-256/  # `generative cascade` keeps both in one folder
  generative sample runs/cifar10-dit --rejection-extractor resnet9 --rejection-keep 0.25 \\
    --rejection-weights runs/cifar10-judge.safetensors
A diffusion model is sampled by any sampler that fits what it was trained as: `generative list samplers` and `schedulers` name
them with their options.
The same seed gives the same image of a class whatever else is sampled, the batch size and the number of processes.
An interrupted run into a folder goes on where it stopped when the command is repeated.

A GAN interpolates between images: from one noise to the next in each class, or from class to class at fixed noise. The output's
name says what is written: .png a grid with a row for each interpolation, .gif, .webp or .apng an animation of all of them side by
side, anything else a folder of frames.
  generative sample runs/digits-sagan --interpolate latent --output latents.png
  generative sample runs/digits-sagan --interpolate class --class-labels 3,8,1 --num-images-per-class 4 --output classes.png
  generative sample runs/digits-sagan --interpolate latent --class-labels 0,1,2,3 --frames 32 --loop --output latents.webp"""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    from pipelines import options_classes

    parser = CommandParser("generative sample", "Sample images from a run or a pipeline folder.", EPILOG)
    parser.add_argument(
        "folder",
        metavar="RUN_OR_PIPELINE_DIR",
        type=Path,
        help="runs/NAME, runs/NAME/checkpoint-STEP, a folder written by save_pretrained, or user/repo of the Hugging Face hub",
    )
    parser.add_argument(
        "--average", metavar="NAME", help="of a run that keeps several averages: another than the first, such as denoiser-std-0.1"
    )
    parser.add_argument(
        "--class-labels", default=ALL_CLASSES, metavar="0,1,2", help="numbers or names of classes, or `all` (default)"
    )
    parser.add_argument("--num-images-per-class", type=int, metavar="N", help="default 10; with --interpolate, rows (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time; does not change them (default 64)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR|FILE", help="folder or .npz (default samples/); with --interpolate: interpolation.png"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="autocast of the networks (default no: float32)"
    )
    families = options_classes().values()
    add_option_flags(parser, families)
    add_guide_flags(parser)
    parser.add_argument_group("cascade (diffusion)").add_argument(
        "--upsampler",
        type=Path,
        metavar="RUN_OR_FOLDER",
        help="bring the images to a higher resolution with this upsampler; its own options are --upsampler-...",
    )
    rejection = parser.add_argument_group("rejection by classifier (every family)")
    rejection.add_argument(
        "--rejection-extractor",
        metavar="NAME",
        help="draw more images than asked for and keep those this classifier is surest of",
    )
    rejection.add_argument("--rejection-weights", type=Path, metavar="FILE", help="its weights (default: packaged or downloaded)")
    rejection.add_argument("--rejection-keep", type=float, metavar="SHARE", help="share of the images that is kept (default 0.5)")
    interpolation = parser.add_argument_group("interpolation between images (GANs)")
    interpolation.add_argument("--interpolate", choices=("latent", "class"), help="what is interpolated: the noise, or the class")
    interpolation.add_argument(
        "--frames", type=int, metavar="N", help="images of an interpolation, with both ends (default 8; animation 24)"
    )
    interpolation.add_argument(
        "--path", choices=("spherical", "linear"), help="from noise to noise: a great circle (default) or a line"
    )
    interpolation.add_argument("--fps", type=float, metavar="N", help="frames per second of an animation (default 12)")
    interpolation.add_argument(
        "--loop", action="store_true", default=None, help="play an animation forth and back, without a jump"
    )
    given = vars(parser.parse_args(arguments))
    chosen = chosen_options(given, families)
    guides = take_guide_flags(given)
    interpolation_options = {name: given.pop(name) for name in ("frames", "path", "fps", "loop")}
    kind = given.pop("interpolate")
    rejection_options = {name: given.pop(f"rejection_{name}") for name in ("extractor", "weights", "keep")}
    if rejection_options["extractor"] is None:
        for name, value in rejection_options.items():
            if value is not None:
                raise UserError(f"--rejection-{name} describes a rejection; add --rejection-extractor")
    elif kind is not None:
        raise UserError("--rejection-extractor chooses among samples and has no use for --interpolate; leave one out")
    if kind is not None:
        if given.pop("mixed_precision") != "no":
            raise UserError("--mixed-precision has no use for --interpolate, which runs in float32; leave one out")
        if not guides.is_empty:
            raise UserError("--guide and --classifier have no use for --interpolate, which interpolates between a GAN's images")
        if given.pop("upsampler") is not None:
            raise UserError("--upsampler has no use for --interpolate, which interpolates between a GAN's images; leave one out")
        from generative.cli.interpolate import interpolate

        return interpolate(chosen, kind, **interpolation_options, **given)
    for name, value in interpolation_options.items():
        if value is not None:
            raise UserError(
                f"--{name} describes an interpolation between images; add --interpolate latent or --interpolate class"
            )
    return sample(chosen, rejection_options, guides, **given)


def sample(
    options: dict[str, Any],
    rejection_options: dict[str, Any],
    guides: GuideFlags,
    folder: Path,
    average: str | None,
    class_labels: str,
    num_images_per_class: int | None,
    seed: int,
    batch_size: int,
    output: Path | None,
    device: str | None,
    mixed_precision: Precision = "no",
    upsampler: Path | None = None,
) -> int:
    """Sample and write; returns the exit code."""
    output = output or Path("samples")
    num_images_per_class = 10 if num_images_per_class is None else num_images_per_class
    if output.suffix == ".npz" and output.is_dir():
        raise UserError(f"output '{output}' is a folder; give a file name, or a folder that does not end in .npz")
    check_counts(num_images_per_class, batch_size)
    from accelerate.utils import gather_object

    from generative.core.checkpoint import fingerprint_folder, read_state
    from generative.core.generation import SampleRequest, gather_in_rounds, generate_images
    from generative.core.outputs import ImageFolderWriter, write_npz
    from generative.core.rejection import generate_best_images
    from generative.core.runtime import build_accelerator
    from pipelines import find_pipeline_folder, load_pipeline

    pipeline, using = attach_upsampler(load_pipeline(folder, average), upsampler)
    check_flags(type(pipeline).__name__, options, pipeline.options_class)
    using |= attach_guides(*stage_of(pipeline, options, guides))
    pipeline.check_options(**options)
    labels = parse_class_labels(class_labels, pipeline)
    requests = [SampleRequest(label, index) for label in labels for index in range(num_images_per_class)]
    accelerator = build_accelerator(mixed_precision)
    move_pipeline(pipeline, device, accelerator)
    rejection_classifier = load_rejection_classifier(rejection_options, pipeline, accelerator)
    evaluations: list[int] = []

    def generate(wanted: list[SampleRequest]) -> Any:
        common = {
            "seed": seed,
            "batch_size": batch_size,
            "options": options,
            "process_index": accelerator.process_index,
            "num_processes": accelerator.num_processes,
            "progress": accelerator.is_main_process,
            "autocast": accelerator.autocast,
        }
        if rejection_classifier is None:
            return counting(generate_images(pipeline, wanted, **common), pipeline, evaluations)
        gather = gather_object if accelerator.num_processes > 1 else list
        return generate_best_images(
            pipeline,
            wanted,
            rejection_classifier,
            num_images_per_class=num_images_per_class,
            keep=rejection_options["keep"],
            gather=gather,
            **common,
        )

    if output.suffix == ".npz":
        batches = gather_in_rounds(iter(generate(requests)), accelerator.num_processes)
        if accelerator.is_main_process:
            write_npz(output, batches, requests, pipeline.class_names)
        else:
            deque(batches, maxlen=0)
    else:
        settings = {
            "pipeline": fingerprint_folder(find_pipeline_folder(folder)),
            "pipeline_class": type(pipeline).__name__,
            "seed": seed,
            "options": pipeline.merge_options(options).to_dict(),
            **using,
        }
        if (folder / "state.json").is_file():
            settings["step"] = read_state(folder)["step"]
        if average is not None:
            settings["average"] = average
        if mixed_precision != "no":
            settings["mixed_precision"] = mixed_precision
        if rejection_classifier is not None:
            # How many are kept decides among which they are chosen.
            chosen_from = {"keep": rejection_options["keep"], "num_images_per_class": num_images_per_class}
            settings["rejection"] = {**rejection_classifier.description, **chosen_from}
        writer = ImageFolderWriter(output, settings, pipeline.class_names)
        missing = writer.missing(requests)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            writer.start(requests)
        accelerator.wait_for_everyone()
        for positions, images in generate(missing):
            writer.write([missing[p] for p in positions], images)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"{len(requests)} images of {len(labels)} classes in '{output}'")
        if evaluations:
            least, most, mean = min(evaluations), max(evaluations), sum(evaluations) / len(evaluations)
            spread = "" if least == most else f" ({least} to {most})"
            print(f"evaluations of the denoiser per image: {mean:.4g}{spread}")
    return 0


def counting(batches: Iterator[Batch], pipeline: ImageGenerationPipeline, evaluations: list[int]) -> Iterator[Batch]:
    """The same batches, while the evaluations that each image took are noted, of pipelines that count them."""
    for batch in batches:
        count = getattr(pipeline, "num_evaluations", None)
        evaluations += [] if count is None else count.tolist()
        yield batch


def load_rejection_classifier(
    rejection_options: dict[str, Any], pipeline: ImageGenerationPipeline, accelerator: Accelerator
) -> ClassifierJudge | None:
    """The classifier that chooses among samples, or None where none was asked for; fills in the share that is kept.

    Raises:
        UserError: If the share is not in (0, 1], or the classifier cannot be had or has other classes.
    """
    from generative.core.rejection import CAVEAT, ClassifierJudge, num_candidates

    if rejection_options["extractor"] is None:
        return None
    rejection_options["keep"] = 0.5 if rejection_options["keep"] is None else rejection_options["keep"]
    num_candidates(1, rejection_options["keep"])
    extractor, weights = rejection_options["extractor"], rejection_options["weights"]
    rejection_classifier = ClassifierJudge(extractor, weights, pipeline.num_classes, pipeline.device)
    if accelerator.is_main_process:
        print(f"warning: {CAVEAT.format(name=rejection_classifier.name)}", file=sys.stderr)
    return rejection_classifier
