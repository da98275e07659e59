"""A run's pipeline as others get it: slim weights, a card with data, scores and protocol, sample grid and configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from generative.core import checkpoint as ckpt
from generative.core.classes import PACKAGES, find_class
from generative.core.errors import UserError
from generative.core.hub import local_folder
from generative.core.logging import DATA_FILE
from generative.report.card import UNKNOWN_LICENSE, CardFacts, NetworkFacts, build_card
from generative.report.card_scores import ScoreSet, file_scores, run_scores
from generative.report.citations import papers_of
from generative.report.collect import CONFIG_FILE, Run, is_run, read_run
from generative.report.figures import read_grid
from pipelines import find_pipeline_folder, load_any_pipeline, load_with_average
from pipelines.base import ImageGenerationPipeline, ImagePipeline
from pipelines.slim import MAX_SHARD_SIZE, check_storage, networks_of, save_slim

CARD = "README.md"
GRID = "samples.png"


@dataclass(frozen=True)
class Wanted:
    """What a published pipeline should be.

    Attributes:
        average: Another average of the run than the one that samples; see ``load_pipeline``.
        dtype: Precision of the stored weights.
        max_shard_size: Most bytes of a file of weights.
        license: Its identifier on the hub.
        scores: Files of ``fid-score --json`` or ``--csv``.
    """

    average: str | None = None
    dtype: str = "float32"
    max_shard_size: str = MAX_SHARD_SIZE
    license: str = UNKNOWN_LICENSE
    scores: tuple[Path, ...] = ()


class Publication:
    """One pipeline that is to be published; everything is read and checked when it is built.

    Args:
        source: A run, a checkpoint, a pipeline folder, or ``user/repo`` of the hub.
        wanted: What it should be.

    Raises:
        UserError: If there is no pipeline, a part of it is damaged, or what is wanted cannot be.
    """

    def __init__(self, source: Path, wanted: Wanted) -> None:
        check_storage(wanted.dtype, wanted.max_shard_size)
        if not wanted.license.strip() or any(letter in wanted.license for letter in "\n\r"):
            raise UserError(
                f"--license '{wanted.license}' is no identifier of a licence; give one of the hub's, such as apache-2.0"
            )
        self.wanted = wanted
        self.folder = local_folder(source)
        self.given = [file_scores(path, self.folder) for path in wanted.scores]
        if wanted.average is None:
            self.pipeline: ImagePipeline = load_any_pipeline(self.folder)
        else:
            self.pipeline = load_with_average(self.folder, wanted.average)

    @cached_property
    def run(self) -> Run | None:
        """The run that the weights are of; None where only a pipeline is there."""
        place = find_pipeline_folder(self.folder).resolve()
        candidates = [self.folder.resolve(), *list(place.parents)[:2]]
        found = next((folder for folder in candidates if is_run(folder)), None)
        return None if found is None else read_run(found, found.name)

    @cached_property
    def step(self) -> int | None:
        """Training step of the weights; None where it is unknown."""
        place = find_pipeline_folder(self.folder).resolve()
        for folder in (self.folder.resolve(), place.parent):
            if (folder / "state.json").is_file():
                return int(ckpt.read_state(folder)["step"])
        if self.run is None:
            return None
        checkpoints = ckpt.list_checkpoints(self.run.path)
        return ckpt.step_of(checkpoints[-1]) if checkpoints else None

    @property
    def is_sampled(self) -> bool:
        """Whether the weights are those that the run sampled and scored, and no other average."""
        return self.wanted.average is None or self.wanted.average in self.pipeline.components

    def fill(self, folder: Path, title: str, source: str) -> None:
        """Write everything into a folder.

        Args:
            folder: Where to.
            title: Heading of the card.
            source: What a user types to load it.
        """
        facts = self.facts(title, source)
        save_slim(self.pipeline, folder, self.wanted.dtype, self.wanted.max_shard_size)
        if self.grid is not None:
            shutil.copyfile(self.grid, folder / GRID)
        if facts.config is not None:
            (folder / CONFIG_FILE).write_text(facts.config, encoding="utf-8")
        (folder / CARD).write_text(build_card(facts), encoding="utf-8", errors="backslashreplace")

    @cached_property
    def grid(self) -> Path | None:
        """The newest sample grid up to the weights' step, or None."""
        if self.run is None or not self.is_sampled:
            return None
        grids = [path for step, path in self.run.grids if self.step is None or step <= self.step]
        return grids[-1] if grids and read_grid(grids[-1]) is not None else None

    def facts(self, title: str, source: str) -> CardFacts:
        """All that the card says; see ``fill``."""
        pipeline = self.pipeline
        generates = isinstance(pipeline, ImageGenerationPipeline)
        networks = [
            NetworkFacts(name, type(network).__name__, sum(tensor.numel() for tensor in network.state_dict().values()))
            for name, network in networks_of(pipeline)
        ]
        return CardFacts(
            title=title,
            source=source,
            pipeline=type(pipeline).__name__,
            purpose=pipeline.purpose,
            image_size=pipeline.image_size,
            networks=networks,
            dtype=self.wanted.dtype,
            license=self.wanted.license,
            num_classes=pipeline.num_classes if generates else None,
            class_names=pipeline.class_names,
            state=self.state,
            data=None if self.run is None else read_data(self.run.path / DATA_FILE),
            config=None if self.run is None or not self.run.config else plain_config(self.run.config),
            sampling=pipeline.sampling_defaults if generates else {},
            scores=self.scores,
            grid=None if self.grid is None else GRID,
            papers=papers_of([*parts_of(pipeline), *objective_of(self.run)]),
            warnings=self.warnings,
        )

    @property
    def state(self) -> str:
        """Which state of the run the weights are, in words."""
        words = []
        if self.step is not None:
            seen = self.run.images_at(self.step) if self.run else None
            words.append(f"Weights of training step {self.step:,}" + (f" ({seen:,} images seen)" if seen is not None else ""))
        if self.wanted.average is not None:
            words.append(f"{'average' if words else 'Average'} `{self.wanted.average}`")
        return ", ".join(words)

    @property
    def warnings(self) -> list[str]:
        """What a user must know before anything else."""
        if self.run is None or self.run.progress is None or self.run.progress >= 1:
            return []
        return [f"The run was not finished: {100 * self.run.progress:.0f} % of its images were seen."]

    @property
    def scores(self) -> Sequence[ScoreSet]:
        """Those of the files given, then the run's own."""
        own = run_scores(self.run, self.step) if self.run is not None and self.is_sampled else None
        found = self.given + ([own] if own is not None else [])
        if self.wanted.dtype == "float32":
            return found
        note = f"Taken with weights in float32; here they are stored in {self.wanted.dtype}"
        return [replace(each, notes=[*each.notes, note]) for each in found]


def read_data(path: Path) -> dict[str, Any] | None:
    """What a run found in its training data; None where it has not written it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def plain_config(config: dict[str, Any]) -> str:
    """A configuration as YAML, its absolute paths cut to their last part: where files lay on one machine is nobody's business."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        is_place = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
        return Path(value).name if is_place else value

    return yaml.safe_dump(cut(config), sort_keys=False, allow_unicode=True)


def parts_of(pipeline: ImagePipeline) -> list[type]:
    """Classes of a pipeline's parts, of those within it, and its own."""
    found: list[type] = []
    for component in pipeline.components.values():
        found += parts_of(component) if isinstance(component, ImagePipeline) else [type(component)]
    return [*found, type(pipeline)]


def objective_of(run: Run | None) -> list[type]:
    """The class that trained it, where it is one of ours."""
    path = None if run is None else run.setting("objective", "class_path")
    if not isinstance(path, str) or path.split(".")[0] not in PACKAGES:
        return []
    module, _, name = path.rpartition(".")
    try:
        return [find_class(name, module)]
    except UserError:
        return []
