"""``generative push`` against a small hub on this machine, and what its name is then good for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_stub
import pytest
import torch
import yaml
from hub_stub import Hub
from PIL import Image
from tiny_pipelines import save_tiny_dit, tiny_gan

from generative.cli.main import main
from metrics.sources import open_source


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_stub.serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def failure(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one sentence of a command that fails with a code."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).convert("RGB").tobytes() for path in sorted(folder.glob("*.png"))}


def test_what_is_pushed_is_sampled_scored_and_started_from(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(saved), "ada/tiny", "--license", "mit"]) == 0
    said = capsys.readouterr().out
    assert f"{hub.url}/ada/tiny" in said and "`generative sample ada/tiny`" in said
    files = hub.repos["ada/tiny"].files()
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "manifest.json",
        "model_index.json",
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
    }
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["license"] == "mit" and front["library_name"] == "triptych" and "sagangenerator" in front["tags"]
    assert b"generative sample ada/tiny --class-labels all" in files["README.md"]
    for source, output in ((str(saved), "own"), ("ada/tiny", "pushed")):
        assert main(["sample", source, "--num-images-per-class", "2", "--output", output]) == 0
    assert pngs(Path("own")) == pngs(Path("pushed")) and len(pngs(Path("own"))) == 6
    images = open_source(Path("ada/tiny"), num_samples=3, seed=0)
    assert len(images) == 3 and "GANImagePipeline" in images.kind


def test_a_guide_comes_from_the_hub(hub: Hub) -> None:
    own, weak = (save_tiny_dit(Path(name), seed=seed) for name, seed in (("own", 0), ("weak", 1)))
    assert main(["push", str(weak), "ada/weak"]) == 0
    flags = ["--guide-scale", "2", "--num-images-per-class", "1", "--num-inference-steps", "2", "--class-labels", "0"]
    for guide in (str(weak), "ada/weak"):
        assert main(["sample", str(own), "--guide", guide, *flags, "--output", guide.replace("/", "-") + "-out"]) == 0
    assert pngs(Path("weak-out")) == pngs(Path("ada-weak-out"))


def test_a_repeated_push_sends_what_changed_and_no_more(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = tiny_gan()
    pipeline.save_pretrained("run/pipeline")
    assert main(["push", "run", "ada/tiny", "--commit-message", "First"]) == 0
    repo, sent = hub.repos["ada/tiny"], hub.uploads()
    assert sent == 1 and repo.messages == ["initial commit", "First"]
    assert main(["push", "run", "ada/tiny"]) == 0
    assert "nothing has changed since commit" in capsys.readouterr().out
    assert hub.uploads() == sent and len(repo.messages) == 2
    repo.commit("main", repo.files() | {"notes.txt": b"of a reader"}, "by hand")
    assert main(["push", "run", "ada/tiny", "--license", "mit"]) == 0
    assert hub.uploads() == sent and b"license: mit" in repo.files()["README.md"], "the card alone"
    with torch.no_grad():
        next(pipeline.generator.parameters()).add_(1)
    pipeline.save_pretrained("run/pipeline")
    assert main(["push", "run", "ada/tiny", "--max-shard-size", "5KB"]) == 0
    shards = sorted(path for path in repo.files() if path.endswith("safetensors"))
    assert len(shards) > 1 and all("-of-" in path for path in shards), "the one file of before is gone"
    assert repo.files()["notes.txt"] == b"of a reader", "files of others stay"
    assert main(["push", "run", "ada/tiny", "--max-shard-size", "5KB"]) == 0
    assert main(["sample", "ada/tiny", "--num-images-per-class", "1", "--output", "out"]) == 0


def test_a_branch_of_its_own(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(saved), "ada/tiny", "--revision", "half", "--dtype", "float16", "--private"]) == 0
    repo = hub.repos["ada/tiny"]
    assert repo.private and "model_index.json" in repo.files("half") and "model_index.json" not in repo.files("main")
    assert f"{hub.url}/ada/tiny/tree/half" in capsys.readouterr().out
    assert b"ada/tiny@half" in repo.files("half")["README.md"]
    assert main(["sample", "ada/tiny@half", "--num-images-per-class", "1", "--output", "out"]) == 0
    assert main(["push", str(saved), "tiny2"]) == 0, "a name alone is the user's own"
    assert "ada/tiny2" in hub.repos


def test_a_dry_run_lists_and_sends_nothing(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(saved), "ada/tiny", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "generator/diffusion_pytorch_model.safetensors" in said and "README.md" in said and "5 files" in said
    assert "nothing was sent to 'ada/tiny'" in said
    assert hub.requests == [] and hub.repos == {}


def test_refusals_are_one_sentence_and_change_nothing(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(saved)
    assert "REPO 'a/b/c' is no name of a repository" in failure(capsys, 2, "push", run, "a/b/c")
    assert "REPO 'ada/a--b' is no name" in failure(capsys, 2, "push", run, "ada/a--b")
    assert hub.requests == []
    assert "'bob/tiny' is not yours to write: the token is of ada" in failure(capsys, 2, "push", run, "bob/tiny")
    assert "'nowhere' does not exist; give a run folder" in failure(capsys, 2, "push", "nowhere", "ada/tiny")
    assert "--commit-message is empty" in failure(capsys, 2, "push", run, "ada/tiny", "--commit-message", " ")
    assert hub.repos == {}
    assert "license" in failure(capsys, 2, "push", run, "ada/tiny", "--license", "mine")
    assert "model_index.json" not in hub.repos["ada/tiny"].files(), "refused by the hub before a file is sent"
    assert hub.uploads() == 0
    assert "'ada/tiny' is public, and --private is asked for" in failure(capsys, 2, "push", run, "ada/tiny", "--private")
    hub.users["hf_write"]["role"] = "read"
    assert "the token of ada may only read" in failure(capsys, 2, "push", run, "ada/tiny")
    del hub.users["hf_write"]
    assert "the hub does not know the token" in failure(capsys, 2, "push", run, "ada/tiny")
    monkeypatch.delenv("HF_TOKEN")
    assert "no token of the hub is found: log in with `hf auth login`" in failure(capsys, 2, "push", run, "ada/tiny")


def test_an_organization_is_written_to_by_its_members(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.users["hf_write"]["orgs"] = ["lab"]
    assert main(["push", str(saved), "lab/tiny"]) == 0
    assert "the token is of ada, or of lab" in failure(capsys, 2, "push", str(saved), "other/tiny")


def test_surroundings_that_fail_leave_all_as_it_was(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.broken = 500
    said = failure(capsys, 1, "push", str(saved), "ada/tiny")
    assert "fails (500" in said and "repeat the command later" in said and hub.repos == {}
    hub.broken = 403
    assert "the token may not write to 'ada/tiny'" in failure(capsys, 2, "push", str(saved), "ada/tiny")
    hub_stub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert "http://127.0.0.1:9 cannot be reached, nothing was sent" in failure(capsys, 1, "push", str(saved), "ada/tiny")


def test_what_a_push_lists_is_what_its_manifest_lists(hub: Hub, saved: Path) -> None:
    assert main(["push", str(saved), "ada/tiny"]) == 0
    files = hub.repos["ada/tiny"].files()
    sizes = json.loads(files["manifest.json"])["files"]
    assert sizes == {name: len(content) for name, content in files.items() if name not in (".gitattributes", "manifest.json")}
