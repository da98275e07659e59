"""``generative selfimprove``: guide a diffusion away from what it becomes when trained on its own samples (arXiv 2408.16333)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.layers import SECTIONS
from generative.cli.option_flags import add_option_flags, chosen_options
from generative.cli.overrides import split_overrides
from generative.cli.self_plan import BASE, SAMPLES, Plan
from generative.cli.self_training import TrainingPlan, write_guided
from generative.core.errors import UserError
from generative.diffusion.options import DiffusionOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

    from generative.data.generated import GeneratedSpec
    from pipelines.diffusion import DiffusionImagePipeline

EPILOG = """Three steps, each of which goes on where it was stopped when the command is repeated:
  1. the run's average makes N samples, as many of each class, unguided unless options of sampling say otherwise    DIR/samples
     (images; of a model of latents its latents, neither decoded nor encoded again)
  2. a copy that starts from that average is trained on them, under the run's own configuration                     DIR/training
     (a run like others: overrides as in `generative train`; its learning rate stays constant, so that a checkpoint is
     what a shorter training would have made)
  3. the run's average with that copy as its guide becomes a pipeline, w written into its defaults                  DIR/pipeline
The guided prediction is (1 + w) base - w copy, so guide_scale is 1 + w:
  generative selfimprove runs/cifar10-dit --samples 50000 --images 200000 --scale 1
  generative sample runs/cifar10-dit-selfimprove --output samples/      fid-score test/ runs/cifar10-dit-selfimprove
Several processes share both the sampling and the training:
  torchrun --nproc-per-node 8 -m generative.cli.main selfimprove RUN --samples 1000000
Another w needs no command: --guide-scale of sample and fid-score. Another budget is this command with another --images: more
trains on, and one of a checkpoint that is there only writes its pipeline. Or any of the checkpoints without a pipeline:
  generative sample runs/cifar10-dit --guide runs/cifar10-dit-selfimprove/training/checkpoint-00000782 --guide-scale 2"""

VISITS = 4
"""How often the copy sees each sample, where the command does not say."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser(
        "generative selfimprove", "Guide a diffusion away from a copy of it that was trained on its own samples.", EPILOG
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run of a diffusion or flow, or one of its checkpoints")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN-selfimprove")
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="that the base makes (default 50,000)")
    parser.add_argument(
        "--images", type=int, metavar="BUDGET", help=f"samples seen in training the copy (default: {VISITS} times --samples)"
    )
    parser.add_argument("--checkpoints", type=int, default=4, metavar="K", help="kept at equal distances (default 4)")
    parser.add_argument("--scale", type=float, default=0.5, metavar="W", help="w of the guidance (default 0.5)")
    parser.add_argument("--learning-rate", type=float, metavar="LR", help="of the copy (default: the run's)")
    parser.add_argument("--average", metavar="NAME", help="which average is the base (default: the one that samples)")
    parser.add_argument(
        "--config", action="append", default=[], metavar="CONFIG", help="train by this, where RUN has no config.yaml"
    )
    parser.add_argument(
        "--sample-seed", dest="seed", type=int, default=0, metavar="SEED", help="of the samples (default 0); --seed is training's"
    )
    parser.add_argument("--batch-size", type=int, default=50, metavar="N", help="samples at a time (default 50)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="of sampling (default no)")
    parser.add_argument("--trust-code", action="store_true", help="allow the configuration to name classes of any module")
    add_option_flags(parser, [DiffusionOptions])
    own, overrides = split_overrides(arguments, SECTIONS)
    given = vars(parser.parse_args(own))
    options = {"guidance_scale": 1.0} | chosen_options(given, [DiffusionOptions])
    output, images = given.pop("output"), given.pop("images")
    num_samples = given.pop("samples")
    plan = Plan(
        output=output or given["run"].with_name(f"{given['run'].name}-selfimprove"),
        configs=tuple(given.pop("config")),
        num_samples=num_samples,
        num_images=VISITS * num_samples if images is None else images,
        num_checkpoints=given.pop("checkpoints"),
        options=options,
        overrides=tuple(overrides),
        **given,
    )
    return selfimprove(plan)


def selfimprove(plan: Plan) -> int:
    """Sample, train and write the pipeline, as far as that is not done; returns the exit code."""
    from generative.core.runtime import build_accelerator

    pipeline = load_base(plan)
    trained = TrainingPlan.make(plan)
    accelerator = build_accelerator(plan.mixed_precision)
    spec = prepare(plan, pipeline, accelerator)
    make_samples(plan, pipeline, spec, accelerator)
    del pipeline  # training has the device to itself
    code = trained.fit(plan)
    if code:
        return code
    if accelerator.is_main_process:  # the group of processes has ended with the training
        write_guided(plan, trained)
    return 0


def load_base(plan: Plan) -> DiffusionImagePipeline:
    """The pipeline that makes the samples and is guided later, checked.

    Raises:
        UserError: If the run is none of a diffusion of classes, its options are wrong, or there are fewer samples than classes.
    """
    from pipelines import load_pipeline
    from pipelines.diffusion import DiffusionImagePipeline

    loaded = load_pipeline(plan.run, plan.average)
    if type(loaded) is not DiffusionImagePipeline:
        raise UserError(
            f"'{plan.run}' samples by a {type(loaded).__name__}; self-improvement guides a diffusion or flow of classes alone"
        )
    base = DiffusionImagePipeline(
        loaded.denoiser, loaded.scheduler, loaded.autoencoder, loaded.sampling_defaults, formulation=loaded.formulation
    )
    base.class_names = loaded.class_names
    base.check_options(**plan.options)
    # What the samples are made with, the guided pipeline samples with too.
    base.register_to_config(sampling_defaults=base.merge_options(plan.options).to_dict())
    if plan.num_samples < base.num_classes:
        raise UserError(f"--samples {plan.num_samples} leaves some of the {base.num_classes} classes without a sample; give more")
    return base


def prepare(plan: Plan, pipeline: DiffusionImagePipeline, accelerator: Accelerator) -> GeneratedSpec:
    """Write down what is begun, or find that the folder holds this very beginning.

    Raises:
        UserError: If the folder holds something else.
    """
    from generative.cli.self_samples import make_spec
    from generative.core.checkpoint import fingerprint_network, write_folder
    from generative.core.lock import hold_folder

    origin = {
        "base": fingerprint_network(pipeline.denoiser),
        "sampler": type(pipeline.scheduler).__name__,
        "sampler_config": settings_of(pipeline.scheduler),
        "formulation": type(pipeline.formulation).__name__,
        "formulation_config": settings_of(pipeline.formulation),
        "options": pipeline.sampling_defaults,
        "seed": plan.seed,
    }
    if plan.mixed_precision != "no":
        origin["mixed_precision"] = plan.mixed_precision
    spec = make_spec(pipeline, plan.num_samples, origin)
    if accelerator.is_main_process:
        check_begun(plan.output, spec)
        plan.output.mkdir(parents=True, exist_ok=True)
        hold_folder(plan.output)
        if not (plan.output / BASE).is_dir():
            write_folder(plan.output / BASE, lambda folder: pipeline.save_pretrained(folder))
    accelerator.wait_for_everyone()
    return spec


def settings_of(component: Any) -> dict[str, Any]:
    """Constructor arguments of a component, as JSON has them."""
    content: dict[str, Any] = json.loads(component.to_json_string())
    return {name: value for name, value in content.items() if not name.startswith("_")}


def check_begun(output: Path, spec: GeneratedSpec) -> None:
    """Refuse a folder that holds something else than the beginning of this.

    Raises:
        UserError: Naming what differs.
    """
    from generative.data.generated import SPEC_FILE, read_spec

    if not output.is_dir() or all(path.match(".*.partial") for path in output.iterdir()):
        return
    if (output / SAMPLES / SPEC_FILE).is_file():
        found, wanted = read_spec(output / SAMPLES).to_json(), spec.to_json()
        for name in [name for name in wanted if found.get(name) != wanted[name]]:
            here, there = found.get(name), wanted[name]
            if isinstance(here, dict) and isinstance(there, dict):
                name = next(key for key in there if here.get(key) != there[key])
                here, there = here.get(name), there[name]
            raise UserError(
                f"'{output}' was begun with {name} {here}, this command has {there}; choose another --output, or delete it"
            )
    elif not (output / BASE).is_dir():
        raise UserError(f"output '{output}' is not empty and holds no self-improvement; choose another folder")


def make_samples(plan: Plan, pipeline: DiffusionImagePipeline, spec: GeneratedSpec, accelerator: Accelerator) -> None:
    """Step 1."""
    from generative.cli.self_samples import write_samples
    from generative.data.generated import missing_shards

    folder = plan.output / SAMPLES
    is_there = not missing_shards(folder, spec)
    accelerator.wait_for_everyone()
    if not is_there:
        pipeline.to(accelerator.device)
        write_samples(pipeline, folder, spec, plan.options, plan.seed, plan.batch_size, accelerator)
    if accelerator.is_main_process:
        print(f"{spec.num_samples} {spec.kind} of {spec.num_classes} classes in '{folder}'" + (", from before" * is_there))
