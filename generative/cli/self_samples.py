"""Samples of a diffusion model for its own training: any number of processes, and a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from generative.core.checkpoint import fingerprint_network, remove_leftovers
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.lock import hold_folder
from generative.core.logging import progress_interval, write_json
from generative.core.sampling import SampleState
from generative.core.seeding import sample_generators
from generative.data import generated
from generative.data.cache_files import shard_name
from generative.data.cache_writer import write_tensors
from generative.data.generated import SPEC_FILE, GeneratedSpec, has_preview, missing_shards
from pipelines.diffusion import DiffusionImagePipeline


def make_spec(pipeline: DiffusionImagePipeline, num_samples: int, origin: Mapping[str, Any]) -> GeneratedSpec:
    """What the folder of samples will hold; samples of latents are kept as latents, neither decoded nor encoded again."""
    autoencoder = pipeline.autoencoder
    return GeneratedSpec(
        kind="images" if autoencoder is None else "latents",
        num_samples=num_samples,
        num_classes=pipeline.num_classes,
        class_names=tuple(pipeline.class_names or ()),
        image_size=pipeline.image_size,
        encoder_fingerprint=None if autoencoder is None else fingerprint_network(autoencoder),
        origin=dict(origin),
        shard_samples=generated.SHARD_SAMPLES,
    )


def write_samples(
    pipeline: DiffusionImagePipeline,
    folder: Path,
    spec: GeneratedSpec,
    options: Mapping[str, Any],
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """Write this process's share of the samples that are missing, behind a progress bar; returns when all processes are done.

    Args:
        pipeline: On its device.
        folder: Of the samples; made where it is not there.
        spec: What it will hold.
        options: Of sampling.
        seed: Of the samples: with class and number it decides each of them.
        batch_size: Samples at a time.
        accelerator: Processes and precision.

    Raises:
        UserError: If a sample is not finite.
    """
    requests = spec.requests()
    missing = missing_shards(folder, spec)
    accelerator.wait_for_everyone()  # everyone has looked before anyone writes
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        hold_folder(folder)
        remove_leftovers(folder)
        write_json(folder / SPEC_FILE, spec.to_json())
    accelerator.wait_for_everyone()
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(
        total=sum(len(spec.samples_of(shard)) for shard in mine),
        desc="sampling",
        unit="img",
        mininterval=progress_interval(),
        disable=not accelerator.is_main_process,
        leave=False,
    ) as bar:
        for shard in mine:
            inside = spec.samples_of(shard)
            parts = []
            for start in range(0, len(inside), batch_size):
                wanted = [requests[number] for number in inside[start : start + batch_size]]
                with torch.no_grad(), accelerator.autocast():
                    parts.append(sample_batch(pipeline, wanted, start, options, seed))
                bar.update(len(wanted))
            names = dict.fromkeys(name for part in parts for name in part)
            tensors = {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
            write_tensors(folder / shard_name(shard), tensors)
    accelerator.wait_for_everyone()


def sample_batch(
    pipeline: DiffusionImagePipeline, wanted: Sequence[SampleRequest], first_row: int, options: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray]:
    """Some samples as a shard keeps them.

    Args:
        pipeline: Samples.
        wanted: Which.
        first_row: Row in the shard of the first.
        options: Of sampling.
        seed: Of the samples.

    Raises:
        UserError: If one is not finite.
    """
    labels = pipeline.check_class_labels([request.class_label for request in wanted])
    generators = sample_generators(seed, labels.tolist(), [request.index for request in wanted])
    state = pipeline.sample(labels, pipeline.merge_options(options), pipeline.image_noise(generators, len(wanted)))
    if pipeline.autoencoder is None:
        return {"images": decoded(pipeline, state.sample)}
    latents = state.sample.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(latents).all():
        raise UserError("the run makes NaN or infinite latents; its weights have diverged or overflow in this precision")
    kept = [row for row, request in enumerate(wanted) if has_preview(request)]
    if not kept:  # a file cannot be mapped that holds nothing
        return {"latents": latents}
    rows = np.array(kept, np.int64) + first_row
    return {"latents": latents, "previews": decoded(pipeline, state.sample[kept]), "preview_rows": rows}


def decoded(pipeline: DiffusionImagePipeline, sample: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) uint8 of final samples."""
    images: Tensor = pipeline.postprocess(pipeline.decode(SampleState(sample)), "uint8", return_dict=False)[0]  # type: ignore[assignment]
    return images.cpu().numpy()
