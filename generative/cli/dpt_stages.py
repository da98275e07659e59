"""The stages of dual pseudo training (You et al., arXiv 2302.10586): each is whole in the folder, or is done again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generative.cli.dpt_probe import LinearProbe, extract_features, load_extraction
from generative.cli.train import train
from generative.core.checkpoint import checkpoint_path, read_tensors, remove_leftovers
from generative.core.errors import UserError
from generative.core.generation import generate_images
from generative.core.lock import hold_folder
from generative.core.logging import write_json
from generative.data import generated
from generative.data.base import ImageDataset
from generative.data.cache_files import shard_name
from generative.data.cache_writer import write_tensors
from generative.data.generated import SPEC_FILE, GeneratedDataset, GeneratedSpec, missing_shards
from generative.data.pseudo_labels import LABELS
from generative.report.dpt import RECORD_FILE
from metrics.extraction import Extraction

FEATURES_FILE, LABELS_FILE, SAMPLE_FEATURES_FILE = "features.safetensors", "labels.safetensors", "sample-features.safetensors"
TRAINING, SAMPLES = "training", "samples"
DATASET = "generative.data.pseudo_labels.PseudoLabelDataset"


@dataclass(frozen=True, kw_only=True)
class DualPseudoTraining:
    """What the command is asked for, checked.

    Attributes:
        config: The training configuration.
        overrides: Of it.
        data_section: Its resolved data section.
        data: Training images with their true labels.
        held_out: Images that classifiers are tested on.
        labelled: (M,) numbers of the images whose labels are looked at.
        output: Where everything goes.
        steps: Length of the training.
        asked: What decides the result besides the configuration; another one in the same folder is refused.
        batch_size: Pseudo-images at a time.
    """

    config: Path
    overrides: tuple[str, ...]
    data_section: dict[str, Any]
    data: ImageDataset
    held_out: ImageDataset
    labelled: Tensor
    output: Path
    steps: int
    asked: Mapping[str, Any]
    batch_size: int

    def run(self) -> int:
        """Go through the stages, as far as they are not done; returns the exit code."""
        record = self.begin()
        train_features, test_features = self.features()
        self.label(record, train_features, test_features)
        code = self.fit()
        if code:
            return code
        self.make_samples()
        self.refit(record, train_features, test_features)
        stages = record["stages"]
        print(
            f"done: accuracy on {len(self.held_out)} held-out images {stages['probe']['accuracy']:.4f} with {len(self.labelled)} "
            f"labels, {stages['probe_with_pseudo_images']['accuracy']:.4f} with "
            f"{stages['probe_with_pseudo_images']['pseudo_images']} pseudo-images besides; the generator is '{self.training}'"
        )
        return 0

    @property
    def training(self) -> Path:
        """The generator's run."""
        return self.output / TRAINING

    def begin(self) -> dict[str, Any]:
        """What the folder's record says so far; a new folder gets one.

        Raises:
            UserError: If it was begun otherwise, or is no folder of this.
        """
        identity = {**self.asked, "data": self.data.fingerprint, "held_out": self.held_out.fingerprint}
        path = self.output / RECORD_FILE
        if path.is_file():
            record: dict[str, Any] = json.loads(path.read_text())
            for name, value in identity.items():
                if record["asked"].get(name) != value:
                    raise UserError(
                        f"'{self.output}' was begun with {name} {record['asked'].get(name)}, this command has {value}; choose "
                        "another --output, or delete it"
                    )
        elif self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UserError(f"output '{self.output}' is not empty and holds no dual pseudo training; choose another folder")
        else:
            record = {"asked": identity, "stages": {}}
        self.output.mkdir(parents=True, exist_ok=True)
        hold_folder(self.output)
        remove_leftovers(self.output)
        write_json(path, record)
        return record

    @cached_property
    def extraction(self) -> Extraction:
        """The frozen network."""
        weights = self.asked["weights"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return load_extraction(
            self.asked["extractor"], None if weights is None else Path(weights), self.asked["input_size"], device
        )

    def features(self) -> tuple[Tensor, Tensor]:
        """Features of training and held-out images."""
        path = self.output / FEATURES_FILE
        if not path.is_file():
            sets = {"train": self.data, "held_out": self.held_out}
            write_tensors(path, {name: extract_features(images, self.extraction).numpy() for name, images in sets.items()})
        found = read_tensors(path)
        return found["train"], found["held_out"]

    def label(self, record: dict[str, Any], train_features: Tensor, test_features: Tensor) -> None:
        """Stage 1: the probe's labels of all training images, those of the labelled ones too.

        Raises:
            UserError: If it takes no image for some class.
        """
        path = self.output / LABELS_FILE
        if path.is_file() and "probe" in record["stages"]:
            return
        probe = self.probe(train_features[self.labelled], self.data.labels[self.labelled])
        labels = probe.predict(train_features)
        empty = (torch.bincount(labels, minlength=self.data.num_classes) == 0).nonzero().flatten().tolist()
        if empty:
            raise UserError(
                f"the classifier takes no image for class {self.data.class_names[empty[0]]}; give more labels a class, or "
                "another --extractor"
            )
        write_tensors(path, {LABELS: labels.numpy()})
        self.note(
            record,
            "probe",
            {
                "labelled_images": len(self.labelled),
                "accuracy": probe.accuracy(test_features, self.held_out.labels),
                "pseudo_label_accuracy": float((labels == self.data.labels).double().mean()),
            },
        )

    def probe(self, features: Tensor, labels: Tensor) -> LinearProbe:
        """A classifier fitted on these."""
        return LinearProbe(features, labels, self.data.num_classes)

    def note(self, record: dict[str, Any], stage: str, values: dict[str, Any]) -> None:
        """Write down what a stage gave."""
        record["stages"][stage] = values
        write_json(self.output / RECORD_FILE, record)

    def fit(self) -> int:
        """Stage 2: train, or go on; returns the exit code."""
        if checkpoint_path(self.training, self.steps).is_dir():
            return 0
        data = {"class_path": DATASET, "init_args": {"images": self.data_section, "labels": str(self.output / LABELS_FILE)}}
        own = ["--data", json.dumps(data), "--trainer.output_dir", str(self.training)]
        return train(self.config, [*self.overrides, *own], resume="auto", go_on="the same command")

    def spec(self) -> GeneratedSpec:
        """What the folder of pseudo-images holds."""
        return GeneratedSpec(
            kind="images",
            num_samples=self.asked["pseudo_images"] * self.data.num_classes,
            num_classes=self.data.num_classes,
            class_names=tuple(self.data.class_names),
            image_size=self.data.image_size,
            encoder_fingerprint=None,
            origin=dict(self.asked),
            shard_samples=generated.SHARD_SAMPLES,
        )

    def make_samples(self) -> None:
        """Stage 3: pseudo-images of each class, shard by shard."""
        from pipelines import load_pipeline

        folder, spec = self.output / SAMPLES, self.spec()
        missing = missing_shards(folder, spec)
        if not missing:
            return
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
        write_json(folder / SPEC_FILE, spec.to_json())
        pipeline: Any = load_pipeline(self.training)
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        requests = spec.requests()
        for shard in missing:
            wanted = [requests[number] for number in spec.samples_of(shard)]
            seed, size = self.asked["sample_seed"], self.batch_size
            batches = generate_images(pipeline, wanted, seed=seed, batch_size=size, options={}, progress=True)
            images = torch.cat([images.cpu() for _, images in batches])
            write_tensors(folder / shard_name(shard), {"images": images.numpy()})

    def refit(self, record: dict[str, Any], train_features: Tensor, test_features: Tensor) -> None:
        """Stage 3: the probe on labelled and pseudo-images."""
        if "probe_with_pseudo_images" in record["stages"]:
            return
        samples = GeneratedDataset(self.output / SAMPLES)
        path = self.output / SAMPLE_FEATURES_FILE
        if not path.is_file():
            write_tensors(path, {"samples": extract_features(samples, self.extraction).numpy()})
        made = read_tensors(path)["samples"]
        features = torch.cat([train_features[self.labelled], made])
        probe = self.probe(features, torch.cat([self.data.labels[self.labelled], samples.labels]))
        self.note(
            record,
            "probe_with_pseudo_images",
            {"pseudo_images": len(samples), "accuracy": probe.accuracy(test_features, self.held_out.labels)},
        )
