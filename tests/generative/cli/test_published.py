"""What is published of every paper-scale configuration, and from where: read, told by `generative list`, never left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from published_sizes import PUBLISHED, agrees

from generative.cli.config_files import find_config, list_configs, shipped_files
from generative.cli.main import main
from generative.cli.published import MARK, Published, head_comment, headline, parse_published, read_published

SOURCE = re.compile(r"arXiv \d{4}\.\d{5}(v\d)?(, .+)?|README of [\w-]+/[\w-]+(, .+)?")
# Between the best and the worst that anything of ours is published with.
RANGES = {"FID": (1, 70), "sFID": (3, 12), "IS": (50, 350), "rFID": (0.1, 5), "PSNR": (15, 35), "FD-DINOv2": (20, 200)}


@pytest.mark.parametrize("name", sorted(name for name in shipped_files() if name.startswith("imagenet/")))
def test_a_paper_scale_configuration_says_what_is_published_of_it(name: str) -> None:
    assert read_published(find_config(name)), "add a line '# Published: ...', see generative/cli/published.py"


def test_every_line_is_in_the_form_and_has_a_source() -> None:
    for name, path in shipped_files().items():
        marked = [line for line in head_comment(path) if MARK in line]
        lines = [parse_published(line) for line in marked]
        assert None not in lines, (name, marked)
        for line in lines:
            assert line is not None
            assert not line.scores or SOURCE.fullmatch(line.source), (name, line.source)
            assert line.scores or len(lines) == 1, f"{name}: known, and none known"
            for score, value in line.scores.items():
                low, high = RANGES[score]
                assert low < value < high, (name, score, value)


def test_every_whole_paper_scale_configuration_has_its_parameters_counted() -> None:
    # SiD's networks are its teacher's.
    known = {f"imagenet/{base}" for _, base, *_ in PUBLISHED} | {"imagenet/sid_64"}
    assert known >= {name for name in list_configs() if name.startswith("imagenet/")}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "# Published: FID 2.27, sFID 4.60, IS 278.2 at guidance 1.5, 250 steps (arXiv 2212.09748, table 2)",
            Published({"FID": 2.27, "sFID": 4.6, "IS": 278.2}, "at guidance 1.5, 250 steps", "arXiv 2212.09748, table 2"),
        ),
        ("# Published: rFID 0.59 (README of a/b)", Published({"rFID": 0.59}, "", "README of a/b")),
        ("# Published: FID 3.42, of another (arXiv 2212.11972)", Published({"FID": 3.42}, "of another", "arXiv 2212.11972")),
        ("# Published: none known (a classifier)", Published({}, "", "a classifier")),
        ("# Published: FID 2.27 at guidance 1.5", None),
        ("# Published: none known", None),
        ("# Published: FID about 2 (arXiv 2212.09748)", None),
        ("# It is published (FID 2).", None),
    ],
)
def test_a_line_is_read(line: str, expected: Published | None) -> None:
    assert parse_published(line) == expected


def test_only_the_head_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# A.\n# Published: none known (new)\nseed: 0\n# Published: FID 1.5 (arXiv 2212.09748)\n")
    assert read_published(path) == [Published({}, "", "new")] and headline(path) == ""


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "configs"]) == 0 == main(["list", "overlays"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert lines["imagenet/dit_256"].endswith("[published FID 2.27 at guidance 1.5]")
    assert lines["imagenet/sizes/rin_256"].endswith("[published FID 3.42 by 1,000 evaluations]")
    assert lines["imagenet/vq_16_256"].endswith("[published rFID 2.19 at 256 pixels]")
    assert "published" not in lines["imagenet/wgan_gp_128"].rpartition(":")[2] and "[" not in lines["digits/dit"]


@pytest.mark.parametrize(
    ("count", "published", "expected"),
    [
        (674_834_720, "675M", True),
        (2_353_893_904, "2.3B", True),
        (2_353_893_904, "2.4B", True),
        (2_353_893_904, "2.2B", False),
        (395_928_256, "410M", False),
        (110_888_448, "111M", True),
        (50_244_484, "50.4M", True),
        (172_456_960, "227M", False),
    ],
)
def test_counts_agree_within_a_percent_or_the_digits_given(count: int, published: str, expected: bool) -> None:
    assert agrees(count, published) == expected
