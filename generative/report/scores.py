"""The score table and its protocol in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from generative.core.best import is_higher_better
from generative.core.errors import UserError
from generative.report.collect import Run
from pipelines import options_classes

MINUS, TIMES, INFINITY, NONE = "\u2212", "\u00d7", "\u221e", "\u2013"
ARROWS = {"lower": "\u2193", "higher": "\u2191"}
SHOWN_HASH_DIGITS = 12
# Names of the metrics in a protocol -> what the table calls their scores.
METRIC_TITLES = {
    "frechet": "Fr\u00e9chet distance",
    "kid": "kernel distance (KID's kernel)",
    "precision_recall": "precision, recall",
}
# Published FIDs are computed on this many samples (Heusel et al., arXiv:1706.08500, and practice since).
PUBLISHED_FID_SAMPLES = 50_000
# Columns of numbers that a table has room for on a page of 1280 px.
MAX_COLUMNS = 12


def format_number(value: float | None) -> str:
    """A number with about three significant digits."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return INFINITY if value > 0 else MINUS + INFINITY
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        text = f"{size:.2e}"
    elif size >= 1000:
        text = f"{size:,.0f}"
    else:
        decimals = next((d for limit, d in ((10, 1), (1, 2), (0.1, 3)) if size >= limit), 4)
        text = f"{size:.{decimals}f}" if size else "0"
    return MINUS + text if value < 0 else text


def format_share(value: float | None) -> str:
    """A share with three decimals, as precision and recall are written."""
    return f"{value:.3f}" if value is not None and math.isfinite(value) else format_number(value)


def format_percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * value:.1f} %" if value is not None and math.isfinite(value) else format_number(value)


def format_count(value: float | None) -> str:
    """A whole number with commas."""
    return NONE if value is None else f"{value:,.0f}"


def format_weights(value: float | None) -> str:
    """How many weights, in thousands, millions or billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value is not None and value >= limit:
            return f"{value / limit:.3g} {unit}"
    return format_count(value)


def format_seconds(value: float | None) -> str:
    """A duration, with its two largest units."""
    if value is None:
        return NONE
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} min"


@dataclass(frozen=True)
class Score:
    """How a score is shown.

    Attributes:
        keys: Names it goes by in evaluation.json; a run has one of them.
        title: What the page calls it.
        better: Which direction is better, or None if unknown.
        format: Writes a value.
        spread: Name of its standard deviation, if it has one.
    """

    keys: tuple[str, ...]
    title: str
    better: str | None
    format: Callable[[float | None], str] = format_number
    spread: str | None = None

    def of(self, scores: dict[str, float]) -> float | None:
        """Its value among a run's scores, or None."""
        return next((scores[key] for key in self.keys if key in scores), None)

    @property
    def heading(self) -> str:
        """Title with an arrow that tells which direction is better, as HTML."""
        if self.better is None:
            return escape(self.title)
        return f'{escape(self.title)}&nbsp;<span class="arrow" title="{self.better} is better">{ARROWS[self.better]}</span>'


FRECHET = Score(("frechet_distance", "fid"), "Fr\u00e9chet distance", "lower")
ACCURACY = Score(("classification_accuracy",), "Classification accuracy", "higher", format_percent)
PRECISION = Score(("precision",), "Precision", "higher", format_share)
RECALL = Score(("recall",), "Recall", "higher", format_share)
RECONSTRUCTION_FRECHET = Score(("reconstruction_frechet_distance",), "Fr\u00e9chet distance of reconstructions", "lower")
PSNR = Score(("psnr",), "PSNR (dB)", "higher")
KNOWN_SCORES = (
    FRECHET,
    RECONSTRUCTION_FRECHET,
    PSNR,
    Score(("ssim",), "SSIM", "higher", format_share),
    Score(("lpips",), "LPIPS", "lower"),
    Score(("kernel_distance", "kernel_distance_mean"), "Kernel distance", "lower", spread="kernel_distance_std"),
    Score(("cmmd",), "CMMD", "lower"),
    Score(("gaussian_kernel_distance",), "Gaussian kernel distance", "lower"),
    PRECISION,
    RECALL,
    Score(("density",), "Density", "higher", format_share),
    Score(("coverage",), "Coverage", "higher", format_share),
    Score(("inception_score", "inception_score_mean"), "Inception Score", "higher", spread="inception_score_std"),
    ACCURACY,
    Score(("noised_accuracy",), "Accuracy on noised images", "higher", format_percent),
    Score(("sfid",), "sFID", "lower"),
    Score(("fd_dinov2",), "FD-DINOv2", "lower"),
    Score(("clip_fid",), "CLIP-FID", "lower"),
    Score(("am_score",), "AM score", "lower"),
    Score(("mind",), "MIND", "lower"),
)


def present_scores(runs: Sequence[Run]) -> list[Score]:
    """The scores that any run has; one without a title is shown by its name, without an arrow if its direction is not known."""
    names = dict.fromkeys(name for run in runs for name in [*run.scores, *run.real_scores])
    known = {name for score in KNOWN_SCORES for name in (*score.keys, score.spread)}
    others = [Score((name,), name.replace("_", " "), direction(name)) for name in names if name not in known]
    return [score for score in KNOWN_SCORES if any(key in names for key in score.keys)] + others


def direction(name: str) -> str | None:
    """Which direction of a score is better, if its name tells."""
    try:
        return "higher" if is_higher_better(name) else "lower"
    except UserError:
        return None


def protocol_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose scores compare: equal extractor, weights, resizer, counts, reference and parameters of the metrics."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        compared = {key: value for key, value in run.protocol.items() if key not in ("seed", "sampling")}
        groups.setdefault(json.dumps(compared, sort_keys=True), []).append(run)
    return list(groups.values())


def score_table(runs: Sequence[Run], colors: dict[str, str], real_color: str) -> str:
    """The tables: one row per run, and one for real images under each protocol; as many tables as it takes to fit a page."""
    groups = protocol_groups(runs)
    now = "end" if all(run.progress == 1 for run in runs) else "now"
    tables = []
    for scores in side_by_side(present_scores(runs)):
        body = []
        for number, group in enumerate(groups, 1):
            if len(groups) > 1:
                # Exactly so many: columns beyond the others would take room from them.
                width = 1 + sum(map(num_columns, scores))
                body.append(f'<tr class="group"><th colspan="{width}">{protocol_name(group, number)}</th></tr>')
            best = {score: best_value(score, group) for score in scores}
            body += [run_row(run, scores, best, colors[run.name]) for run in group]
            real = next((run for run in group if run.real_scores), None)
            if real is not None:
                body.append(real_row(real, scores, real_color))
        tables.append(
            '<div class="scroll" tabindex="0" role="region" aria-label="Scores"><table class="scores">'
            f"{table_head(scores, now)}<tbody>{''.join(body)}</tbody></table></div>"
        )
    return "".join(tables)


def num_columns(score: Score) -> int:
    """Columns of a score: the Frechet distance has three."""
    return 3 if score is FRECHET else 1


def side_by_side(scores: Sequence[Score]) -> list[list[Score]]:
    """Scores in groups whose columns have room beside one another; one empty group where there are none."""
    groups: list[list[Score]] = [[]]
    for score in scores:
        if sum(map(num_columns, groups[-1])) + num_columns(score) > MAX_COLUMNS:
            groups.append([])
        groups[-1].append(score)
    return groups


def table_head(scores: Sequence[Score], now: str) -> str:
    """Two rows of headings: the Frechet distance has three columns of its own."""
    cells, below = ['<th rowspan="2" scope="col">Run</th>'], ""
    for score in scores:
        if score is FRECHET:
            cells.append(f'<th colspan="3" scope="colgroup" class="span">{score.heading}</th>')
            below = "".join(f'<th scope="col">{text}</th>' for text in ("step 0", now, "lower by"))
        else:
            cells.append(f'<th rowspan="2" scope="col">{score.heading}</th>')
    return f"<thead><tr>{''.join(cells)}</tr><tr>{below}</tr></thead>"


def cell(name: str, value: float | None, text: str, css_class: str = "") -> str:
    """A number: shown short, with the whole of it in the title and in ``data-value``."""
    if value is None:
        return f'<td data-score="{escape(name)}">{escape(text)}</td>'
    exact = escape(json.dumps(value))
    attributes = f' class="{css_class}"' if css_class else ""
    return f'<td data-score="{escape(name)}" data-value="{exact}" title="{exact}"{attributes}>{escape(text)}</td>'


def score_cells(score: Score, scores: dict[str, float], first: dict[str, float], best: float | None) -> str:
    """The cells of one score in one row."""
    value = score.of(scores)
    text = score.format(value)
    if value is not None and score.spread in scores:
        text += f" \u00b1 {score.format(scores[score.spread])}"
    last = cell(score.keys[0], value, text, "best" if value is not None and value == best else "")
    if score is not FRECHET:
        return last
    start = score.of(first)
    ratio = start / value if start is not None and value else None
    shown = NONE if ratio is None else f"{format_number(ratio)}{TIMES}"
    return cell("frechet_at_step_0", start, score.format(start)) + last + cell("frechet_ratio", ratio, shown)


def best_value(score: Score, runs: Sequence[Run]) -> float | None:
    """The best of several runs; None for one run alone and where all are equal."""
    values = [v for run in runs if (v := score.of(run.scores)) is not None and not math.isnan(v)]
    if len(values) < 2 or score.better is None:
        return None
    if min(values) == max(values):
        return None
    return min(values) if score.better == "lower" else max(values)


def run_row(run: Run, scores: Sequence[Score], best: dict[Score, float | None], color: str) -> str:
    """The row of a run."""
    cells = [score_cells(score, run.scores, run.first_scores, best[score]) for score in scores]
    method = str(run.setting("objective", "class_path") or "").rpartition(".")[2].removesuffix("Objective")
    detail = f"<small>{escape(method)}</small>" if method else ""
    return (
        f'<tr data-run="{escape(run.name)}"><th scope="row"><span class="swatch" style="background:{color}"></span>'
        f"{escape(run.name)}{detail}</th>{''.join(cells)}</tr>"
    )


def real_row(run: Run, scores: Sequence[Score], color: str) -> str:
    """The row of as many real images."""
    count = run.protocol.get("num_fake")
    detail = f"as many training images ({format_count(count)})" if isinstance(count, int) else "as many training images"
    return (
        f'<tr class="real"><th scope="row"><span class="swatch" style="background:{color}"></span>real images'
        f"<small>{escape(detail)}</small></th>"
        f"{''.join(score_cells(score, run.real_scores, {}, None) for score in scores)}</tr>"
    )


def protocol_name(group: Sequence[Run], number: int) -> str:
    """How several protocols are told apart."""
    return f"Protocol {number}" if group[0].protocol else "Protocol not recorded yet"


def protocol_section(runs: Sequence[Run]) -> str:
    """The protocol of every group of runs in words, and what the numbers must not be compared with."""
    groups = protocol_groups(runs)
    parts = []
    if len(groups) > 1:
        parts.append(
            '<p class="warning">These runs were not scored under one protocol: compare numbers within a group of rows only.</p>'
        )
    for number, group in enumerate(groups, 1):
        if not group[0].protocol:
            continue
        title = f"<h3>{protocol_name(group, number)}</h3>" if len(groups) > 1 else ""
        facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in protocol_facts(group))
        parts.append(f'{title}<dl class="protocol">{facts}</dl>')
        if warning := comparability(group):
            parts.append(f'<p class="warning">{escape(warning)}</p>')
    return "".join(parts)


def protocol_facts(group: Sequence[Run]) -> list[tuple[str, str]]:
    """What the scores of these runs depend on: what it is, and the facts in words."""
    protocol = group[0].protocol
    reference = shorten_hashes(str(protocol.get("reference") or "unknown reference"))
    compared = (
        f"{format_any_count(protocol.get('num_fake'))} generated against {format_any_count(protocol.get('num_real'))} real "
        f"ones ({reference})"
    )
    facts = network_facts(protocol, group, [("images", compared)])
    others = protocol.get("other_networks")
    for other in others if isinstance(others, list) else ():
        facts += network_facts(other, group) if isinstance(other, dict) else []
    if protocol.get("classifier"):
        facts.append(
            (
                "classification accuracy",
                f"share of images to which this gives the class that was asked for: {protocol['classifier']}; "
                "the row of real images gives it for the held-out ones, which it was not fitted on",
            )
        )
    sampling: dict[str, list[str]] = {}
    for run in group:
        sampling.setdefault(sampling_words(run), []).append(run.name)
    return facts + [(f"sampling of {', '.join(names)}", words) for words, names in sampling.items()]


def network_facts(network: dict[str, Any], group: Sequence[Run], images: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """What the scores of one network depend on; what is said of the images stands between network and metrics."""
    digest = str(network.get("weights_sha256") or "unknown")
    facts = [
        ("features", f"{network.get('extractor', 'an unknown network')} (weights sha256 {digest[:SHOWN_HASH_DIGITS]})"),
        (
            "input",
            f"images brought to {network.get('input_size', '?')} px by the resizer \u201c{network.get('resizer', '?')}\u201d, "
            f"pixel values {network.get('normalization', 'of unknown normalisation')}",
        ),
        *images,
    ]
    metrics = network.get("metrics")
    for name, parameters in metrics.items() if isinstance(metrics, dict) else ():
        if not isinstance(parameters, dict):
            continue
        words = describe(parameters)
        if name == "kid" and any("kernel_distance" in run.scores for run in group):
            # Sets smaller than the subsets' size have one value over all pairs: the rule of the subsets is not in use.
            words = f"{describe({'feature': parameters.get('feature')})}, unbiased over all pairs (so it can fall below 0)"
        facts.append((METRIC_TITLES.get(str(name), str(name)), words))
    return facts


def sampling_words(run: Run) -> str:
    """How the scored images of a run were sampled."""
    options, labels = run.protocol.get("sampling"), run.protocol.get("labels")
    words = describe(chosen(options)) if isinstance(options, dict) and options else "the pipeline's own options"
    precision = f", {run.protocol['sample_precision']}" if run.protocol.get("sample_precision") else ""
    return f"seed {run.protocol.get('seed', 'unknown')}, {words}{precision}{f', {labels} classes' if labels else ''}"


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Options of sampling but those left at what is their default in every family, most of which do not act there."""
    usual: dict[str, list[Any]] = {}
    for family in options_classes().values():
        for name, value in family().to_dict().items():
            usual.setdefault(name, []).append(value)
    return {name: value for name, value in options.items() if any(value != default for default in usual.get(name, [None]))}


def comparability(group: Sequence[Run]) -> str:
    """A warning where the Frechet distance is no FID, or no published FID's equal."""
    protocol = group[0].protocol
    if not any(score.of(run.scores) is not None for run in group for score in (FRECHET, RECONSTRUCTION_FRECHET)):
        return ""
    if protocol.get("extractor") != "inception-v3":
        return (
            f"The Fr\u00e9chet distance here is on {protocol.get('extractor', 'an unknown network')}, not on Inception-v3: "
            "it is not FID and NOT comparable with published FID values, only with distances under this very protocol."
        )
    count = protocol.get("num_fake")
    if isinstance(count, int) and count < PUBLISHED_FID_SAMPLES:
        return (
            f"FID falls as samples are added: at {count:,} images it is not comparable with published values, "
            f"which are taken at {PUBLISHED_FID_SAMPLES:,}."
        )
    return ""


def describe(parameters: dict[str, Any]) -> str:
    """Settings in words, the unset ones left out."""
    given = {key: value for key, value in parameters.items() if value is not None}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in given.items()) or "no options"


def format_any_count(value: Any) -> str:
    """A count from a file, which may hold anything."""
    return format_count(value) if isinstance(value, int) else "an unknown number of"


def shorten_hashes(text: str) -> str:
    """The same text, with long words (fingerprints) cut."""
    return " ".join(word if len(word) < 32 else word[:SHOWN_HASH_DIGITS] for word in text.split())
