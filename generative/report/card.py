"""The model card of a published pipeline: what it is, its data, its scores with the protocol of each, and how to use it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from generative.report.card_scores import SPREADS, ScoreSet
from generative.report.citations import Paper
from generative.report.scores import ARROWS, KNOWN_SCORES, format_number, format_weights

LIBRARY = "triptych"
TASK = "unconditional-image-generation"
"""The hub's task of generators that are not asked in words; its list has none for classes."""
UNKNOWN_LICENSE = "unknown"
MAX_NAMED_CLASSES = 20
DEFAULT_EXTRACTOR = "inception-v3"
"""What fid-score takes where no network is named."""


@dataclass(frozen=True)
class NetworkFacts:
    """One network of the pipeline: its folder, its class and how many numbers it holds."""

    part: str
    kind: str
    num_weights: int


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        title: Heading.
        source: What a user types to load it: ``user/repo``, or a folder.
        pipeline: Class of the pipeline.
        purpose: What it does, after "It".
        image_size: Side of its images, in pixels.
        num_classes: Number of classes; None where it makes none.
        class_names: Their names, or None.
        networks: Its networks.
        dtype: Precision that its weights are stored in.
        license: Its identifier on the hub.
        state: Which state of which run it is, in words; empty if unknown.
        data: ``data.json``'s entry of the training data; None where unknown.
        config: The run's configuration, as YAML without places of files, or None.
        sampling: Options of sampling saved with it.
        scores: With their protocols.
        grid: File of the sample grid beside the card, or None.
        papers: By their number on arXiv.
        warnings: What a user must know before anything else.
    """

    title: str
    source: str
    pipeline: str
    purpose: str
    image_size: int
    networks: Sequence[NetworkFacts]
    dtype: str
    license: str = UNKNOWN_LICENSE
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    state: str = ""
    data: dict[str, Any] | None = None
    config: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    scores: Sequence[ScoreSet] = ()
    grid: str | None = None
    papers: dict[str, Paper] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def makes_images(self) -> bool:
        """Whether it makes images of classes; a tokenizer or a classifier does not."""
        return self.num_classes is not None


def build_card(facts: CardFacts) -> str:
    """The card as Markdown, after the YAML that the hub reads."""
    sections = [
        ("", what_it_is(facts)),
        ("Use", how_to_use(facts)),
        ("Scores", score_sections(facts)),
        ("Training data", data_section(facts.data)),
        ("Training", training_section(facts)),
        ("Citation", citation_section(facts.papers)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    return f"---\n{front_matter(facts)}\n---\n\n# {plain(facts.title)}\n\n{body}\n"


def front_matter(facts: CardFacts) -> str:
    """What the hub files the model under, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    kinds = list(dict.fromkeys(network.kind.lower() for network in facts.networks))
    tags = ["image-generation", "class-conditional"] if facts.makes_images else []
    name = str((facts.data or {}).get("dataset") or "unknown data")
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=name.lower().replace(" ", "-"),
            dataset_name=name,
            metric_type=key,
            metric_value=value,
            metric_name=f"{title_of(key)} ({protocol_line(each)})",
        )
        for each in facts.scores
        for key, value in each.scores.items()
        if math.isfinite(value) and not key.endswith(SPREADS)
    ]
    data = ModelCardData(
        license=facts.license,
        library_name=LIBRARY,
        pipeline_tag=TASK if facts.makes_images else None,
        tags=[LIBRARY, *tags, *kinds],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )
    text: str = data.to_yaml()
    return text.strip()


def what_it_is(facts: CardFacts) -> str:
    """Picture, a sentence on the whole, its networks."""
    parts = [f"> **Note.** {plain(text)}" for text in facts.warnings]
    size = f"{facts.image_size} x {facts.image_size} pixels"
    lead = f"A {facts.pipeline} of Triptych, a suite of class-conditional image generators"
    if facts.num_classes is None:
        parts.append(f"{lead}. It {facts.purpose}, of {size}.")
    else:
        classes = f"{facts.num_classes} classes" if facts.num_classes != 1 else "one class"
        parts.append(f"{lead}: images of {classes}, {size}.")
    if facts.state:
        parts.append(f"{facts.state}.")
    if facts.grid:
        parts.append(
            f"![Samples, one class to a row]({facts.grid})\n\nOne class to a row; drawn with a fixed seed while it trained, none "
            "picked by hand."
        )
    rows = [f"| {plain(n.part)} | {plain(n.kind)} | {format_weights(n.num_weights)} |" for n in facts.networks]
    parts.append("\n".join(["| Part | Network | Weights and buffers |", "|---|---|---|", *rows]))
    parts.append(f"Weights are stored in {facts.dtype} (safetensors), and loaded in float32.")
    if facts.class_names:
        shown = ", ".join(f"{number} {plain(name)}" for number, name in enumerate(facts.class_names[:MAX_NAMED_CLASSES]))
        more = f" and {len(facts.class_names) - MAX_NAMED_CLASSES} more" if len(facts.class_names) > MAX_NAMED_CLASSES else ""
        parts.append(f"Classes: {shown}{more}.")
    if facts.license == UNKNOWN_LICENSE:
        parts.append("No licence was given with these weights: ask their author before you use them.")
    return "\n\n".join(parts)


def how_to_use(facts: CardFacts) -> str:
    """Command lines and Python that sample and score it."""
    source = shlex.quote(facts.source)
    if not facts.makes_images:
        code = f'from pipelines import load_any_pipeline\n\npipeline = load_any_pipeline("{facts.source}")'
        return f"```python\n{code}\n```"
    first = next((each for each in facts.scores if each.num_fake), None)
    lines = [
        f"generative sample {source} --class-labels all --num-images-per-class 10 --output samples/",
        f"fid-score REFERENCE {source} {score_flags(first)}".rstrip(),
    ]
    label = (facts.class_names or ["0"])[0]
    python = [
        "import torch",
        "from pipelines import load_pipeline",
        "",
        f'pipeline = load_pipeline("{facts.source}")',
        f"images = pipeline(class_labels=[{label if not facts.class_names else repr(label)}], "
        "generator=torch.Generator().manual_seed(0)).images",
    ]
    text = "```\n" + "\n".join(lines) + "\n```\n\n```python\n" + "\n".join(python) + "\n```\n\n"
    text += "REFERENCE is a folder of held-out real images, or a file of statistics. A seed makes the same image "
    text += "whatever the batch size."
    chosen = [f"- `{name}`: {plain(str(value))}" for name, value in facts.sampling.items() if value is not None]
    if chosen:
        rows = "\n".join(chosen)
        summary = "Options of sampling saved with it, which a call may override"
        text += f"\n\n<details><summary>{summary}</summary>\n\n{rows}\n\n</details>"
    return text


def score_flags(scores: ScoreSet | None) -> str:
    """Flags of fid-score that sample and look as some scores did."""
    if scores is None:
        return "--num-samples 50000"
    flags = [f"--num-samples {scores.num_fake}"]
    if scores.seed is not None:
        flags.append(f"--seed {scores.seed}")
    if scores.extractor not in (None, DEFAULT_EXTRACTOR):
        flags.append(f"--extractor {shlex.quote(str(scores.extractor))}")
        if scores.input_size is not None:
            flags.append(f"--input-size {scores.input_size}")
    return " ".join(flags)


def score_sections(facts: CardFacts) -> str:
    """Every set of scores with its protocol; sets of different protocols are never put into one table."""
    parts = []
    for each in facts.scores:
        columns = {"Value": each.scores, **({"As many real images": each.real_scores} if each.real_scores else {})}
        table_rows = [
            " | ".join([f"| {title_of(key)} {arrow_of(key)}".rstrip(), *(value_of(key, scores) for scores in columns.values())])
            for key in each.scores
            if not key.endswith(SPREADS)
        ]
        head = ["| Score | " + " | ".join(columns), "|---" * (1 + len(columns))]
        table = "\n".join(f"{row} |" for row in [*head, *table_rows])
        protocol = "\n".join(f"- {plain(name)}: {plain(text)}" for name, text in each.facts)
        warnings = "".join(f"\n\n> {plain(note)}" for note in each.notes)
        parts.append(f"Taken {plain(each.origin)}.\n\n{table}\n\nProtocol:\n\n{protocol}{warnings}")
    if len(parts) > 1:
        parts = [f"### {position}\n\n{text}" for position, text in enumerate(parts, 1)]
        parts.insert(0, "Each table has a protocol of its own: numbers compare only under equal ones.")
    return "\n\n".join(parts) or "None were taken. Score it with the command above."


def data_section(data: dict[str, Any] | None) -> str:
    """What the run found in its data."""
    if not data:
        return "Not recorded."
    facts = [f"- data set: `{plain(str(data.get('dataset', 'unknown')))}`"]
    for key, name in (("images", "images"), ("classes", "classes")):
        if isinstance(data.get(key), int):
            facts.append(f"- {name}: {data[key]:,}")
    counts = data.get("images_per_class")
    if isinstance(counts, list) and counts and all(isinstance(count, int) for count in counts):
        low, high = min(counts), max(counts)
        facts.append(f"- images of a class: {low:,}" if low == high else f"- images of a class: {low:,} to {high:,}")
    if data.get("fingerprint"):
        facts.append(f"- fingerprint: `{plain(str(data['fingerprint']))}`")
    left = {reason: count for reason, count in dict(data.get("left_out") or {}).items() if count}
    if left:
        facts.append(f"- left out: {', '.join(f'{count} {plain(str(reason))}' for reason, count in left.items())}")
    return "\n".join(facts)


def training_section(facts: CardFacts) -> str:
    """The configuration, and the command that trains it again."""
    if facts.config is None:
        return ""
    config = facts.config.rstrip().replace("```", "'''")
    return (
        "`config.yaml` in this repository trains it again (paths are cut to their last part):\n\n"
        "```\ngenerative train config.yaml --trainer.output_dir runs/again\n```\n\n"
        f"<details><summary>Configuration</summary>\n\n```yaml\n{config}\n```\n\n</details>"
    )


def citation_section(papers: dict[str, Paper]) -> str:
    """BibTeX of the papers."""
    if not papers:
        return ""
    entries = "\n\n".join(paper.bibtex(arxiv) for arxiv, paper in papers.items())
    return f"The papers behind its networks:\n\n```bibtex\n{entries}\n```"


def protocol_line(scores: ScoreSet) -> str:
    """A protocol in a few words, for where there is room for no more."""
    parts = [scores.extractor or "several networks"]
    if scores.num_fake is not None:
        parts.append(f"{scores.num_fake:,} samples")
    return ", ".join(parts)


def title_of(key: str) -> str:
    """What a score is called; fid-score's names stand for themselves."""
    known = next((score for score in KNOWN_SCORES if key == score.keys[0]), None)
    return key.removesuffix("_mean").replace("_", " ") if known is None else known.title


def arrow_of(key: str) -> str:
    """Which direction is better."""
    known = next((score for score in KNOWN_SCORES if key in score.keys), None)
    return ARROWS[known.better] if known is not None and known.better else ""


def value_of(key: str, scores: dict[str, float]) -> str:
    """A score with its standard deviation, where it has one."""
    spreads = [scores[name] for end in SPREADS if (name := key.removesuffix("_mean") + end) in scores]
    return format_number(scores.get(key)) + (f" \u00b1 {format_number(spreads[0])}" if spreads else "")


def plain(text: str) -> str:
    """A text of a file as it stands, in one line: no Markdown, no HTML, no end of a table's cell."""
    line = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|*_`[]#\\" else letter for letter in line)
