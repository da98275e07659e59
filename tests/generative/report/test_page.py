"""The page as a reader's browser sees it, and the command that writes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from generative.cli.main import main
from generative.core.errors import UserError
from generative.report.page import write_report
from generative.report.scores import format_number, format_percent, format_seconds, format_weights

WriteRun = Callable[..., Path]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, text and the score table; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: dict[str, dict[str, float]] = {}
        self.shown: dict[str, dict[str, str]] = {}
        self._row = self._score = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self._row = values.get("data-run", values.get("class", ""))
        if tag == "td":
            self._score = values.get("data-score", "")
            if "data-value" in values:
                self.rows.setdefault(self._row, {})[self._score] = json.loads(values["data-value"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "td":
            self._score = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._score:
            shown = self.shown.setdefault(self._row, {})
            shown[self._score] = shown.get(self._score, "") + data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def three_families(three_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a GAN, a diffusion model and a transformer."""
    output = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert write_report(three_runs, output, "Three families", "First.\n\nSecond.", caption="My caption.") == output
    return output


def test_the_page_is_whole_and_needs_nothing_from_outside(three_families: Path) -> None:
    output = three_families
    assert [p.name for p in output.parent.iterdir()] == ["report.html"]
    page = read(output)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
        assert "url(" not in attributes.get("style", "")
    text = output.read_text(encoding="utf-8")
    assert "://" not in text and "@import" not in text and "@font-face" not in text
    # Four grids, three strips of three steps, three small grids of three runs; four plots of scores, four of losses, two axes.
    assert page.count("img") == 4 + 3 * 3 + 3 * 3
    assert page.count("svg") == 2 * (4 + 4)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    for words in (
        "Three families",
        "First.",
        "Second.",
        "My caption.",
        "generator/loss",
        "3 runs: sagan, dit, transformer.",
        "Lowest Fr\u00e9chet distance: dit",
    ):
        assert words in page.text
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_the_table_shows_the_numbers_of_the_files(three_runs: list[Path], three_families: Path) -> None:
    page = read(three_families)
    for path in three_runs:
        stored = json.loads((path / "evaluation.json").read_text())
        row = page.rows[path.name]
        for name, value in stored["scores"].items():
            assert row[name] == value
        assert row["frechet_at_step_0"] == 1553.3313275883163
        assert row["frechet_ratio"] == pytest.approx(1553.3313275883163 / stored["scores"]["frechet_distance"])
        assert row["images_seen"] == 25600
        assert row["training_seconds"] == pytest.approx(25600 / 4000)
        for name, value in stored["real_scores"].items():
            assert page.rows["real"][name] == value
    assert page.shown["real"]["classification_accuracy"] == "100.0 %"
    assert page.shown["real"]["kernel_distance"] == "\u22120.0123"
    assert page.shown["dit"]["precision"] == format(page.rows["dit"]["precision"], ".3f")
    # The best of a column stands out: the lowest distance is dit's.
    best = [attributes for tag, attributes in page.tags if tag == "td" and attributes.get("class") == "best"]
    assert [cell["data-value"] for cell in best if cell["data-score"] == "frechet_distance"] == [
        json.dumps(page.rows["dit"]["frechet_distance"])
    ]


def test_the_protocol_is_told_in_words(three_families: Path) -> None:
    text = read(three_families).text
    for words in (
        "efficientnet-lite0 (weights sha256 579344248a93)",
        "96 px by the resizer \u201cclean\u201d",
        "500 generated against 500 real ones (DigitsDataset 34837afe2c0a)",
        "seed 0, guidance scale 1.5, balanced classes",
        "SVM (RBF, gamma 0.001)",
        "NOT comparable with published FID",
    ):
        assert words in text
    assert "not scored under one protocol" not in text


def test_fid_at_few_samples_is_not_a_published_fid(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("adm")
    stored = json.loads((path / "evaluation.json").read_text())
    stored["protocol"] |= {"extractor": "inception-v3", "num_fake": 10_000}
    stored["scores"]["fid"] = stored["scores"].pop("frechet_distance")
    (path / "evaluation.json").write_text(json.dumps(stored))
    page = read(write_report([path], tmp_path / "report.html", "t"))
    assert "at 10,000 images it is not comparable with published values" in page.text
    assert page.rows["adm"]["frechet_distance"] == stored["scores"]["fid"]


def test_runs_of_other_protocols_stand_apart(make_run: WriteRun, tmp_path: Path) -> None:
    runs = [make_run("dit"), make_run("other")]
    path = runs[1] / "evaluation.json"
    stored = json.loads(path.read_text())
    stored["protocol"]["input_size"] = 224
    path.write_text(json.dumps(stored))
    page = read(write_report(runs, tmp_path / "report.html", "t"))
    assert "not scored under one protocol" in page.text and "Protocol 2" in page.text
    assert "Lowest" not in page.text
    assert sum(attributes.get("class") == "real" for tag, attributes in page.tags if tag == "tr") == 2


@pytest.mark.parametrize("lacking", ["config.yaml", "metrics.jsonl", "evaluation.json", "samples", "samples/real.png"])
def test_what_is_missing_is_named(make_run: WriteRun, tmp_path: Path, lacking: str) -> None:
    path = make_run("dit")
    gone = path / lacking
    for file in gone.iterdir() if gone.is_dir() else [gone]:
        file.unlink()
    page = read(write_report([path], tmp_path / "report.html", "t"))
    assert "Not there" in page.text and "dit: no " in page.text


def test_a_run_in_progress(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("dit", total_images=51200)
    (path / "samples" / "step-00000400.png").write_bytes(b"cut")
    page = read(write_report([path], tmp_path / "report.html", "t"))
    assert page.shown["dit"]["images_seen"] == "25,600 (50 %)"
    assert "Not finished: dit (50 %)" in page.text
    assert "the image file cannot be read" in page.text


def test_a_run_that_ended_for_want_of_improvement(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("dit", total_images=51200)
    step = max(json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines())

    def text_of(*history: dict[str, object]) -> str:
        (path / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
        return read(write_report([path], tmp_path / "report.html", "t")).text

    ended = {"step": step, "stopped_early": {"score": "fid"}}
    text = text_of({"step": 1, "changed": {}}, ended)
    assert f"Ended early, for want of improvement: dit (step {step:,})." in text and "Not finished" not in text
    for history in ([{**ended, "step": step - 1}], [ended, {"step": step, "changed": {}}], [{"stopped_early": {}}]):
        assert "Not finished: dit (50 %)" in text_of(*history)


def test_scores_of_several_networks(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("dit")
    stored = json.loads((path / "evaluation.json").read_text())
    stored["scores"] |= {"sfid": 21.5, "fd_dinov2": 310.0, "frechet_distance_vgg16": 7.0}
    stored["protocol"]["other_networks"] = [
        {"extractor": "dinov2-vit-l-14", "weights_sha256": "ab" * 32, "metrics": {"frechet": {}}}
    ]
    stored["protocol"]["sample_precision"] = "bfloat16"
    (path / "evaluation.json").write_text(json.dumps(stored))
    page = read(write_report([path], tmp_path / "report.html", "t"))
    assert page.rows["dit"]["sfid"] == 21.5 and page.rows["dit"]["fd_dinov2"] == 310.0
    for words in ("sFID", "FD-DINOv2", "dinov2-vit-l-14 (weights sha256 abababababab)", "bfloat16", "frechet distance vgg16"):
        assert words in page.text


def test_a_run_with_a_configuration_only(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("seed: 0\n")
    page = read(write_report([tmp_path / "new"], tmp_path / "report.html", "t"))
    for words in ("no sample grid yet", "no evaluation logged yet", "no loss logged yet", "no grid of real images yet"):
        assert words in page.text


def test_scores_that_are_no_finite_numbers(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("dit")
    stored = json.loads((path / "evaluation.json").read_text())
    stored["scores"] |= {"frechet_distance": math.nan, "precision": math.inf, "recall": "high", "own_score": 3.0}
    (path / "evaluation.json").write_text(json.dumps(stored))
    page = read(write_report([path], tmp_path / "report.html", "t"))
    assert page.shown["dit"]["frechet_distance"] == "NaN" and page.shown["dit"]["precision"] == "\u221e"
    assert page.shown["dit"]["recall"] == "\u2013" and page.rows["dit"]["own_score"] == 3.0
    assert "own score" in page.text


def test_everything_from_files_is_escaped(make_run: WriteRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)<"  # A folder's name cannot hold a slash.
    path = make_run(f"{evil}\"'$x_$&", losses=(f"{evil}/loss",))
    stored = json.loads((path / "evaluation.json").read_text())
    stored["protocol"] = {
        "extractor": evil,
        "weights_sha256": evil,
        "num_fake": evil,
        "reference": evil,
        "metrics": {evil: {evil: evil}},
        "classifier": evil,
        "sampling": {evil: evil},
    }
    stored["scores"][evil] = 1.0
    (path / "evaluation.json").write_text(json.dumps(stored))
    (path / "config.yaml").write_text(f"objective: {{class_path: 'a.{evil}'}}\n# </pre>{evil}\n")
    output = write_report([path], tmp_path / "report.html", evil, evil, evil, [evil])
    page = read(output)
    assert page.count("script") == 0 and "<script" not in output.read_text()
    assert page.text.count(evil) > 12


def test_the_page_forbids_scripts_and_fetches(make_run: WriteRun, tmp_path: Path) -> None:
    page = read(write_report([make_run()], tmp_path / "report.html", "t"))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_command_lines_can_be_typed(make_run: WriteRun, tmp_path: Path) -> None:
    path = make_run("my run")
    text = read(write_report([path], tmp_path / "report.html", "t")).text
    assert f"generative train '{path}/config.yaml' --trainer.output_dir '{path}-again'" in text
    assert re.search(r"generative sample '.*my run' --class-labels all .*--guidance-scale 1\.5 --output", text)
    assert "--top-k" not in text


def test_a_failed_write_leaves_the_old_page(make_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "report.html"
    output.parent.mkdir()
    output.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_report([make_run()], output, "t")
    assert output.read_text() == "old" and [p.name for p in output.parent.iterdir()] == ["report.html"]


def test_output_must_be_html(make_run: WriteRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(UserError, match="ends in .html"):
        write_report([run], run / "config.yaml", "t")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="ends in .html"):
        write_report([run], tmp_path / "folder.html", "t")


def test_numbers_are_short() -> None:
    values = (1553.33, 163.46, 98.14, 9.5, 0.0782, 0.871, 0.0, -0.0123, 1.5e-7, None)
    shown = ["1,553", "163.5", "98.1", "9.50", "0.0782", "0.871", "0", "\u22120.0123", "1.50e-07", "\u2013"]
    assert [format_number(value) for value in values] == shown
    assert format_percent(0.9725) == "97.2 %"
    assert [format_seconds(s) for s in (6.4, 192, 7500, None)] == ["6 s", "3 min 12 s", "2 h 05 min", "\u2013"]
    assert [format_weights(n) for n in (900, 12_345, 675_000_000)] == ["900", "12.3 k", "675 M"]


def test_command(make_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    names = "zero,one"
    assert main(["report", str(make_run("dit")), str(make_run("sagan")), "--output", str(output), "--class-names", names]) == 0
    assert str(output) in capsys.readouterr().out
    text = read(output).text
    assert "Generated images: dit, sagan" in text and "zero" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["RUN", "--tite", "x"], "unrecognized arguments: --tite x"),
        (["nowhere"], "run 'nowhere' does not exist"),
        (["RUN", "RUN"], "given twice"),
        (["RUN", "--output", "page.txt"], "ends in .html"),
    ],
)
def test_command_errors(make_run: WriteRun, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run("dit"))
    assert main(["report", *(run if argument == "RUN" else argument for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    text = capsys.readouterr().out
    assert "generative report runs/digits-dit runs/digits-sagan" in text and "--title" in text and "same protocol" in text


def test_rows_are_named_as_the_run_names_its_classes(make_run: WriteRun, tmp_path: Path) -> None:
    run = make_run("dit")
    (run / "data.json").write_text(json.dumps({"data": {"class_names": ["cat", "<dog>", *map(str, range(2, 10))]}}))
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "<span>cat</span><span>&lt;dog&gt;</span><span>2</span>" in (tmp_path / "page.html").read_text()
    (run / "data.json").write_text("[1")
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "<span>0</span><span>1</span>" in (tmp_path / "page.html").read_text()
