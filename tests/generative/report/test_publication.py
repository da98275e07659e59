"""What is published of a run: its card with data, scores and protocols, and the folder of `generative export`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_pipelines import save_tiny_dit, tiny_gan

from generative.cli.main import main
from generative.core.errors import UserError
from generative.report.card import score_flags
from generative.report.card_scores import file_scores, without_places
from generative.report.citations import PAPERS, papers_of
from generative.report.publication import Publication, Wanted
from pipelines import load_pipeline

WriteRun = Callable[..., Path]
FID_SCORES = {"fid": 12.25, "kid": 0.001, "kid_stderr": 0.0002}


@pytest.fixture
def run(make_run: WriteRun) -> Path:
    """A whole run with a pipeline, data and scores."""
    folder = make_run("dit")
    save_tiny_dit(folder / "pipeline")
    data = {
        "dataset": "DigitsDataset",
        "fingerprint": "86e423e6a14ecc19",
        "images": 1297,
        "classes": 3,
        "images_per_class": [400, 400, 497],
        "left_out": {"too small": 2},
    }
    (folder / "data.json").write_text(json.dumps({"data": data, "notes": []}))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] = {"init_args": {"root": "/home/ada/secret place/digits"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def fid_score_json(path: Path, *samples: str) -> Path:
    """A file as ``fid-score --json`` writes it."""
    protocol = {
        "extractor": "inception-v3",
        "weights_sha256": "6726825d0af5f729",
        "resizer": "clean",
        "input_size": 299,
        "normalization": "(x - 128) / 128",
        "num_real": 10000,
        "num_fake": 5000,
        "metrics": {"frechet": {"feature": "pooled"}},
    }
    results = [
        {
            "path": name,
            "samples": f"{name} (5000 images)",
            "step": None,
            "scores": FID_SCORES,
            "protocols": [protocol],
            "notes": [],
        }
        for name in samples
    ]
    record = {
        "reference": "/data/test.npz (10000 images)",
        "protocol": "clean, as clean-fid",
        "results": results,
        "notes": ["a note"],
    }
    path.write_text(json.dumps(record))
    return path


def card_of(folder: Path) -> ModelCard:
    """The card, as the hub's own library reads it: its front matter is checked while it is parsed."""
    return ModelCard.load(folder / "README.md")


def test_the_card_says_what_it_is_and_how_good(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    scores = fid_score_json(tmp_path / "s.json", "runs/dit")
    assert main(["export", str(run), str(out), "--dtype", "float16", "--license", "mit", "--scores", str(scores)]) == 0
    assert "generative sample" in capsys.readouterr().out
    card = card_of(out)
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "triptych"
    assert data["pipeline_tag"] == "unconditional-image-generation" and {"dit", "class-conditional"} <= set(data["tags"])
    results = {(result.metric_type, result.metric_value) for result in card.data.eval_results}
    assert ("fid", 12.25) in results and any(name == "frechet_distance" for name, _ in results)
    assert not any(name.endswith("stderr") for name, _ in results)
    text = card.text
    for said in (
        "images of 3 classes, 4 x 4 pixels",
        "Weights are stored in float16 (safetensors), and loaded in float32",
        "![Samples, one class to a row](samples.png)",
        "| denoiser | DiT |",
        "generative sample out --class-labels all",
        "fid-score REFERENCE out --num-samples 5000",
        "images: 1,297",
        "images of a class: 400 to 497",
        "fingerprint: `86e423e6a14ecc19`",
        "left out: 2 too small",
        "weights sha256 6726825d0af5",
        "10000 real ones",
        "| fid ",
        "0.0010 ± 0.0002",
        "efficientnet-lite0",
        "NOT comparable with published FID",
        "Each table has a protocol of its own",
        "Taken with weights in float32; here they are stored in float16",
        "Scalable Diffusion Models with Transformers",
        "@misc{peebles2022dit",
    ):
        assert said in text, said
    assert "/home/ada" not in text and "secret" not in text and "/data/" not in text and "root: digits" in text
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["objective"]["class_path"].endswith("DiffusionObjective") and not str(config).count("/home")
    assert (out / "samples.png").read_bytes() == (run / "samples" / "step-00000400.png").read_bytes()
    assert load_pipeline(out).num_classes == 3
    assert json.loads((out / "manifest.json").read_text())["files"].keys() >= {"README.md", "model_index.json", "samples.png"}


def test_scores_of_a_state_are_those_of_its_step(run: Path) -> None:
    save_tiny_dit(run / "checkpoint-00000250" / "pipeline")
    (run / "checkpoint-00000250" / "state.json").write_text('{"format_version": 1, "step": 250}')
    early = Publication(run / "checkpoint-00000250", Wanted())
    assert early.step == 250 and early.grid is not None and early.grid.name == "step-00000200.png"
    (own,) = early.scores
    assert "at step 200 (12,800 images seen)" in own.origin and "these weights are of step 250" in own.notes[0]
    assert own.scores["frechet_distance"] == dict(early.run.evaluations)[200]["frechet_distance"]  # type: ignore[union-attr]
    assert own.real_scores["frechet_distance"] == 37.637
    assert "Weights of training step 250 (16,000 images seen)" in early.state


def test_an_unfinished_run_says_so(make_run: WriteRun, tmp_path: Path) -> None:
    folder = make_run("half", total_images=4 * 400 * 64)
    tiny_gan().save_pretrained(folder / "pipeline")
    Publication(folder, Wanted()).fill(tmp_path / "out", "half", "half")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The run was not finished: 25 % of its images were seen" in text
    assert "No licence was given" in text and "license: unknown" in text


def test_a_bare_pipeline_has_a_card_too(tmp_path: Path) -> None:
    tiny_gan().save_pretrained(tmp_path / "bare")
    assert main(["export", str(tmp_path / "bare"), str(tmp_path / "out")]) == 0
    text = card_of(tmp_path / "out").text
    assert "None were taken" in text and "Not recorded" in text and "zhang2018sagan" in text and "## Training\n" not in text
    assert not (tmp_path / "out" / "config.yaml").exists() and not (tmp_path / "out" / "samples.png").exists()


def test_names_of_classes_are_no_markdown(tmp_path: Path) -> None:
    pipeline = tiny_gan()
    pipeline.class_names = ["a|b", "<script>", "`c`\n# d"]
    pipeline.save_pretrained(tmp_path / "bare")
    Publication(tmp_path / "bare", Wanted()).fill(tmp_path / "out", "x", "x")
    text = card_of(tmp_path / "out").text
    assert "0 a\\|b, 1 &lt;script&gt;, 2 \\`c\\` \\# d." in text


def test_the_command_that_scores_looks_as_the_scores_did(tmp_path: Path) -> None:
    path = fid_score_json(tmp_path / "one.json", "samples/")
    assert score_flags(file_scores(path, tmp_path)) == "--num-samples 5000"
    path.write_text(path.read_text().replace("inception-v3", "efficientnet-lite0").replace("299", "96"))
    wanted = "--num-samples 5000 --extractor efficientnet-lite0 --input-size 96"
    assert score_flags(file_scores(path, tmp_path)) == wanted


def test_scores_of_files(tmp_path: Path) -> None:
    one = file_scores(fid_score_json(tmp_path / "one.json", "samples/"), tmp_path / "run")
    assert one.scores == FID_SCORES and one.num_fake == 5000 and one.extractor == "inception-v3" and one.notes == ["a note"]
    own = tmp_path / "run" / "checkpoint-00000010"
    several = fid_score_json(tmp_path / "several.json", "samples/", str(own))
    assert file_scores(several, tmp_path / "run").scores == FID_SCORES
    with pytest.raises(UserError, match=r"is about several sets of samples \(samples/, .*\) and none of them is 'other'"):
        file_scores(several, Path("other"))
    with (tmp_path / "t.csv").open("w") as stream:
        names = ["samples", "step", "reference", "protocol", "networks", "resizers", "num_real", "num_fake", "error", "fid"]
        csv.writer(stream).writerows(
            [names, ["a.npz", "", "/x/y/ref.npz", "clean", "resnet9@4c610d37", "clean", "10", "5", "", "1.5"]]
        )
    found = file_scores(tmp_path / "t.csv", tmp_path)
    assert found.scores == {"fid": 1.5} and found.extractor == "resnet9" and ("reference", "ref.npz") in found.facts
    for content, name in (
        ("{", "a.json"),
        ("[]", "b.json"),
        ('{"results": []}', "c.json"),
        ("x,y\n1,2\n", "d.csv"),
        ("", "e.csv"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="holds no scores of fid-score"):
            file_scores(tmp_path / name, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        file_scores(tmp_path / "nowhere.json", tmp_path)


def test_bad_input_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["nowhere/", "out"], "'nowhere' does not exist"),
        ([str(run), str(run)], "is already there; choose another folder"),
        ([str(run), "out", "--average", "denoiser-std-0.1"], "holds no average 'denoiser-std-0.1'"),
        ([str(run), "out", "--max-shard-size", "big"], "max_shard_size 'big' is no size"),
        ([str(run), "out", "--dtype", "int8"], "invalid choice: 'int8'"),
        ([str(run), "out", "--license", ""], "is no identifier of a licence"),
        ([str(run), "out", "--scores", "nowhere.json"], "--scores 'nowhere.json' cannot be read"),
        ([str(run), "out", "--score", "x"], "unrecognized arguments"),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not Path("out").exists() and not Path(".out.partial").exists()


def test_places_are_cut() -> None:
    assert without_places("root: /home/ada/data/cifar10") == "root: cifar10"
    assert without_places("'/data/x.npz' (10 images)") == "'x.npz' (10 images)"
    assert without_places("runs/digits/dit and a/b") == "runs/digits/dit and a/b"
    assert without_places("~/data/x and C:\\Users\\ada\\x") == "x and x"
    assert without_places("(x - 127.5) / 127.5, https://example.org/a") == "(x - 127.5) / 127.5, https://example.org/a"


def test_every_network_with_a_paper_is_cited() -> None:
    import inspect
    from importlib import import_module
    from pkgutil import walk_packages

    from diffusers import ModelMixin

    classes = []
    for package in ("gan", "diffusion.networks", "autoregressive", "tokenizers"):
        root = import_module(f"generative.{package}")
        for info in walk_packages(root.__path__, root.__name__ + "."):
            module = import_module(info.name)
            classes += [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == info.name]
    networks = [kind for kind in classes if issubclass(kind, ModelMixin) and "Discriminator" not in kind.__name__]
    assert len(networks) > 20
    uncited = {kind.__name__ for kind in networks if not papers_of([kind])}
    assert uncited <= {"PixelTokenizer", "ImageTokenizer", "TrainableTokenizer", "ConvolutionalTokenizer"}
    assert len({paper.key for paper in PAPERS.values()}) == len(PAPERS)
    entry = PAPERS["2212.09748"].bibtex("2212.09748")
    assert entry.startswith("@misc{peebles2022dit,") and entry.count("{") == entry.count("}")
