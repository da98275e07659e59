"""What a scoring run is asked for: one record, filled from the flags of ``fid-score`` or the keywords of ``metrics.score``.

All that can be said of options without looking at a file is checked here. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from metrics import registry
from metrics.files.named_datasets import MODES

DEFAULT_EXTRACTOR = "inception-v3"
DEFAULT_PROTOCOL = "clean"
#: Protocol of lines in torch-fidelity's spelling.
_FIDELITY_PROTOCOL = "tensorflow"
#: Device that stands for the process's GPU, or the CPU where there is none.
ANY_DEVICE = "auto"
PRECISIONS = ("float32", "bfloat16", "float16")
MATCHED_CLASSES = ("top1", "top-n", "middle-n", "logits")
JSON_TO_STDOUT = "-"
#: Other tools' flag -> the score it asks for.
SCORE_FLAGS = {"isc": "is", "fid": "fid", "kid": "kid", "prc": "prc", "mind": "mind"}
_SHOWN_DIGITS = 24

#: Limits of numbers: far beyond any use, and before memory or a day ends.
_MOST_IMAGES = 10_000_000
_MOST_PARTS = 1_000_000
_MOST_EPOCHS = 10_000
_MOST_PIXELS = 2048
_MOST_AT_ONCE = 65_536
_MOST_THREADS = 1024
_MOST_SEED = 2**64 - 1  # What torch's generators take.
_MOST_LEGACY_SEED = 2**32 - 1  # What numpy's legacy generator takes, whose stream the published tools draw from.

#: Takes a value, as text or as Python has it, and returns that of the field.
Reader = Callable[[Any], Any]


class _Count:
    """Reads a whole number within limits, which a message names."""

    def __init__(self, most: int, least: int = 1) -> None:
        self.most = most
        self.least = least

    def __call__(self, value: Any) -> int:
        text = str(value)
        shown = text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}..."
        try:
            number = int(text)
        except ValueError:  # Also of thousands of digits.
            raise ValueError(f"must be a whole number from {self.least} to {self.most:,}, got {shown!r}") from None
        if number < self.least:
            raise ValueError(f"must be at least {self.least}, got {shown}")
        if number > self.most:
            raise ValueError(f"must be at most {self.most:,}, got {shown}")
        return number


class _Choice:
    """Reads one of several names, or numbers."""

    def __init__(self, choices: Iterable[Any]) -> None:
        self.choices = {str(choice): choice for choice in choices}

    def __call__(self, value: Any) -> Any:
        if str(value) not in self.choices:
            known = ", ".join(map(repr, self.choices.values()))
            raise ValueError(f"invalid choice: {str(value)!r} (choose from {known})")
        return self.choices[str(value)]


def _text(value: Any) -> str:
    if value is True:
        raise ValueError("expected one argument")
    return str(value)


def _json(value: Any) -> str:
    return JSON_TO_STDOUT if value is True else str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, got {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (_text(value),)


def _extractor(value: Any) -> str:
    """Accept a name of ours, torch-fidelity's name of the same network, or FILE.py:CLASS."""
    text = _text(value)
    name = {"inception-v3-compat": DEFAULT_EXTRACTOR}.get(text, text)
    if name not in registry.EXTRACTORS and ".py:" not in name:
        choices = ", ".join(registry.EXTRACTORS)
        raise ValueError(f"{text!r} is not known: choose from {choices}, or name your own as FILE.py:CLASS")
    return name


def _names(value: Any) -> tuple[str, ...]:
    """Split names at commas."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else _text(value)
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(f"names no metric, got {text!r}: try --metrics fid")
    return names


def _option(read: Reader, default: Any = None) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """A run of ``fid-score``; all but the first three fields are its long flags, which ``fid-score --help`` explains.

    Args:
        paths: What the run is about: a reference, if ``has_reference`` says so, then sample sets. With ``save_stats`` images and
            output, with ``train_extractor`` training images, test images if any, and output.
        has_reference: Whether the first path, or ``dataset``, is what samples are compared with.
        is_fidelity_line: Whether the run is asked for in torch-fidelity's spelling.

    Raises:
        ValueError: If options do not go together.
    """

    paths: tuple[str, ...]
    has_reference: bool
    is_fidelity_line: bool = False

    metrics: tuple[str, ...] | None = _option(_names)
    protocol: str | None = _option(_Choice(registry.PROTOCOLS))
    extractor: str = _option(_extractor, DEFAULT_EXTRACTOR)
    input_size: int | None = _option(_Count(_MOST_PIXELS))
    dims: int | None = _option(_Choice(registry.FEATURE_BY_DIMS))
    weights: tuple[str, ...] = _option(_texts, ())
    save_stats: bool = _option(_switch, False)
    train_extractor: bool = _option(_switch, False)
    train_epochs: int = _option(_Count(_MOST_EPOCHS), 10)
    num_samples: int | None = _option(_Count(_MOST_IMAGES))
    seed: int | None = _option(_Count(_MOST_SEED, least=0))
    sample_precision: str | None = _option(_Choice(PRECISIONS))

    dataset: str | None = _option(_text)
    dataset_split: str | None = _option(_text)
    dataset_res: int | None = _option(_Count(_MOST_PIXELS))
    dataset_root: str | None = _option(_text)

    isc_splits: int | None = _option(_Count(_MOST_PARTS))
    no_samples_shuffle: bool = _option(_switch, False)
    kid_subsets: int | None = _option(_Count(_MOST_PARTS))
    kid_subset_size: int | None = _option(_Count(_MOST_PARTS))
    prc_neighborhood: int | None = _option(_Count(_MOST_PARTS))
    rng_seed: int | None = _option(_Count(_MOST_LEGACY_SEED, least=0))

    match_classes: str | None = _option(_Choice(MATCHED_CLASSES))
    match_num: int | None = _option(_Count(_MOST_IMAGES))
    sensitivity_map: str | None = _option(_text)
    cas: str | None = _option(_text)
    cas_size: int = _option(_Count(_MOST_PIXELS), 224)
    cas_epochs: int = _option(_Count(_MOST_EPOCHS), 90)

    json: str | None = _option(_json)
    csv: str | None = _option(_text)
    plot: str | None = _option(_text)
    quiet: bool = _option(_switch, False)

    batch_size: int = _option(_Count(_MOST_AT_ONCE), 50)
    device: str = _option(_text, ANY_DEVICE)
    num_workers: int | None = _option(_Count(_MOST_THREADS, least=0))
    precision: str = _option(_Choice(PRECISIONS), "float32")
    skip_corrupt: bool = _option(_switch, False)
    no_cache: bool = _option(_switch, False)
    cache_root: str | None = _option(_text)

    def __post_init__(self) -> None:
        if "" in self.paths:
            raise ValueError("a path is empty.")  # As of a variable of the shell that is not set; it would be this folder.
        if not self.paths:
            raise ValueError("the following arguments are required: PATH, a reference and at least one sample set.")
        if self.dataset is None:
            for name in ("dataset_split", "dataset_res", "dataset_root"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{_flag(name)} says more of --dataset: name a data set as well.")
        elif self.save_stats or self.train_extractor:
            other = "--save-stats" if self.save_stats else "--train-extractor"
            raise ValueError(f"--dataset names the reference of samples, and does not go with {other}: give one of them.")
        if self.train_extractor and len(self.paths) not in (2, 3):
            raise ValueError(f"--train-extractor takes TRAIN [TEST] OUT.safetensors, got {len(self.paths)} paths.")
        if self.save_stats and len(self.paths) != 2:
            raise ValueError(f"--save-stats takes two paths, images and the .npz to write, got {len(self.paths)}.")
        if self.match_num is not None and self.match_classes is None:
            raise ValueError(
                "--match-num counts the samples that --match-classes draws: name what to match, --match-classes top1."
            )
        if self.dims is not None and self.extractor != DEFAULT_EXTRACTOR:
            raise ValueError(f"--dims chooses a feature of inception-v3; {self.extractor} has no such choice: leave it out.")


def reader(name: str) -> Reader:
    """Return what reads an option's value from text."""
    read: Reader = _READERS[name]
    return read


def read_options(paths: Sequence[str], has_reference: bool, values: Mapping[str, Any]) -> ScoreOptions:
    """Return the options of a run.

    Args:
        paths: See ``ScoreOptions``.
        has_reference: Whether the first of them is the reference.
        values: Value by the flag's long name with underscores, as text or as Python has it; lists of metrics and weights may
            be lists, None and False are as good as nothing. Other tools' flags are brought to ours.

    Raises:
        TypeError: If a name is no flag.
        ValueError: If a value is refused, or some do not go together.
    """
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    for name in values:
        if name not in _READERS:
            raise TypeError(f"score() has no option {name!r}: its options are the long flags of fid-score.")
    read: dict[str, Any] = {}
    for name, value in given.items():
        try:
            read[name] = _READERS[name](value)
        except ValueError as error:
            raise ValueError(f"argument {_flag(name)}: {error}.") from None
    return _spelled(tuple(paths), has_reference, read)


def _spelled(paths: tuple[str, ...], has_reference: bool, read: dict[str, Any]) -> ScoreOptions:
    """Bring other tools' spellings to ours."""
    theirs = {name: read.pop(name) for name in _SPELLINGS if name in read}
    samples, reference = theirs.get("input1"), theirs.get("input2")
    if samples is not None or reference is not None:
        if paths:
            raise ValueError("--input1 and --input2 replace the two paths: give either.")
        if samples is None:
            raise ValueError("--input2 is the reference: give the samples as --input1.")
        paths, has_reference = ((samples,), False) if reference is None else ((reference, samples), True)
        read.setdefault("protocol", _FIDELITY_PROTOCOL)
    if "cpu" in theirs or "gpu" in theirs:
        if "device" in read or ("cpu" in theirs and "gpu" in theirs):
            raise ValueError("--device, --gpu and --cpu name the device: give one of them.")
        read["device"] = "cpu" if "cpu" in theirs else f"cuda:{theirs['gpu']}"
    if "mode" in theirs:
        mode, protocol = theirs["mode"], MODES[theirs["mode"]]
        if samples is None and read.get("protocol", protocol) != protocol:
            raise ValueError(f"--mode {mode} is --protocol {protocol}, got --protocol {read['protocol']}: give one of them.")
        read["protocol"] = protocol
    if "dataset" in read and reference is not None:
        raise ValueError("--dataset names the reference of samples, and does not go with --input2: give one of them.")
    flagged = tuple(score for name, score in SCORE_FLAGS.items() if name in theirs)
    if flagged:
        read["metrics"] = (*read.get("metrics", ()), *flagged)
    return ScoreOptions(
        paths=paths,
        has_reference=has_reference or "dataset" in read,
        is_fidelity_line=samples is not None,
        **read,
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


#: Flags of other tools, which ``read_options`` brings to ours, and such as ask for what is done anyway.
_SPELLINGS: dict[str, Reader] = {
    "input1": _text,
    "input2": _text,
    **dict.fromkeys(SCORE_FLAGS, _switch),
    "mode": _Choice(MODES),
    "gpu": _text,
    "cpu": _switch,
    "samples_find_deep": _switch,
    "save_cpu_ram": _switch,
    "prc_batch_size": _Count(_MOST_IMAGES),
}
_READERS: dict[str, Reader] = {
    **{each.name: each.metadata["read"] for each in fields(ScoreOptions) if "read" in each.metadata},
    **_SPELLINGS,
}
