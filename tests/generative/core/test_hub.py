"""Pipelines by their name on the hub: what is fetched, what is refused, and what a folder of that name does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_stub
import pytest
import torch
from hub_stub import Hub, Repo
from tiny_pipelines import tiny_gan

from generative.core.errors import UserError
from generative.core.hub import explained, local_folder, repository_of
from generative.core.weights import find_source, load_network
from pipelines import GANImagePipeline, load_pipeline
from pipelines.gan import GANImagePipeline as Pipeline


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with hub_stub.serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def put(hub: Hub, name: str, folder: Path, private: bool = False, **more: bytes) -> Repo:
    """A repository of a folder's files and some more."""
    repo = hub.repos.setdefault(name, Repo(private))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repo.commit("main", files | {name.replace("__", "."): content for name, content in more.items()}, "put")
    return repo


@pytest.fixture
def tiny(hub: Hub, tmp_path: Path) -> GANImagePipeline:
    """The pipeline that the hub holds as ``ada/tiny``, beside files that nobody asked for."""
    pipeline = tiny_gan()
    pipeline.save_pretrained(tmp_path / "saved")
    put(hub, "ada/tiny", tmp_path / "saved", README__md=b"# tiny", pipeline__py=b"raise SystemExit", weights__bin=b"pickle")
    return pipeline


def images(pipeline: GANImagePipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    found: torch.Tensor = pipeline([0, 2], generator=generator, output_type="uint8").images
    return found


def test_a_name_is_loaded_like_a_folder(hub: Hub, tiny: GANImagePipeline) -> None:
    loaded = load_pipeline("ada/tiny")
    assert torch.equal(images(loaded), images(tiny))
    assert torch.equal(images(Pipeline.from_pretrained("ada/tiny")), images(tiny))
    assert torch.equal(images(load_pipeline("hf://ada/tiny")), images(tiny))
    assert find_source(Path("ada/tiny")) == local_folder("ada/tiny")
    network, _ = load_network("ada/tiny", "generator")
    assert type(network).__name__ == "SAGANGenerator"


def test_only_safetensors_and_json_are_fetched(hub: Hub, tiny: GANImagePipeline) -> None:
    folder = local_folder("ada/tiny")
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert all(path.endswith((".json", ".safetensors")) for path in hub.fetched())


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, tiny: GANImagePipeline, tmp_path: Path) -> None:
    repo = hub.repos["ada/tiny"]
    first = repo.branches["main"]
    with torch.no_grad():
        for parameter in tiny.generator.parameters():
            parameter.mul_(1.5)
    tiny.save_pretrained(tmp_path / "later")
    before = images(load_pipeline("ada/tiny"))
    put(hub, "ada/tiny", tmp_path / "later")
    repo.branches["old"] = first
    assert torch.equal(images(load_pipeline("ada/tiny")), images(tiny)), "the newest is asked for"
    assert torch.equal(images(load_pipeline("ada/tiny", revision="old")), before)
    assert torch.equal(images(load_pipeline("ada/tiny@old")), before)
    assert torch.equal(images(Pipeline.from_pretrained("ada/tiny", revision=first)), before)
    with pytest.raises(UserError, match="'ada/tiny' of the hub has no revision 'new'; give a branch"):
        load_pipeline("ada/tiny", revision="new")
    with pytest.raises(UserError, match="names the revision old, and revision is 'main'"):
        load_pipeline("ada/tiny@old", revision="main")


def test_a_cached_one_needs_no_hub(hub: Hub, tiny: GANImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    load_pipeline("ada/tiny")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(images(load_pipeline("ada/tiny")), images(tiny))
    assert hub.requests == []
    with pytest.raises(UserError, match="'ada/other' does not exist here, is not in the hub's cache, .*HF_HUB_OFFLINE is set"):
        load_pipeline("ada/other")


def test_a_folder_of_the_name_wins(hub: Hub, tiny: GANImagePipeline, tmp_path: Path) -> None:
    with torch.no_grad():
        next(tiny.generator.parameters()).add_(1)
    tiny.save_pretrained(tmp_path / "ada" / "tiny")
    assert torch.equal(images(load_pipeline("ada/tiny")), images(tiny))
    assert hub.requests == []
    with pytest.raises(UserError, match="'ada/tiny' is a folder here, which has no revision 'main'"):
        load_pipeline("ada/tiny", revision="main")
    with pytest.raises(UserError, match="'ada/other' does not exist; give a run folder"):
        load_pipeline("ada/other")  # a slip in a folder's name is no question for the hub
    assert hub.requests == []
    assert local_folder("hf://ada/tiny") != tmp_path / "ada" / "tiny"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ada/tiny", ("ada/tiny", None)),
        ("ada/tiny/", ("ada/tiny", None)),
        ("ada/tiny-1.0_b@refs/pr/1", ("ada/tiny-1.0_b", "refs/pr/1")),
        ("hf://ada/tiny@v1", ("ada/tiny", "v1")),
        ("tiny", None),
        ("/ada/tiny", None),
        ("./ada", None),
        ("../ada", None),
        ("a/b/c", None),
        ("ada/ti ny", None),
    ],
)
def test_names(name: str, expected: tuple[str, str | None] | None) -> None:
    assert repository_of(Path(name)) == expected


def test_a_repository_of_others_is_refused_in_a_sentence(hub: Hub, tiny: GANImagePipeline, tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as caught:
            load_pipeline(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    foreign = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    for name, index in (
        ("ada/sd", json.dumps(foreign)),
        ("ada/torn", "{"),
        ("ada/list", "[]"),
        ("ada/net", '{"_class_name": "DiT"}'),
    ):
        hub.repos[name] = Repo()
        hub.repos[name].commit("main", {"model_index.json": index.encode(), "unet/model.safetensors": b"x"}, "put")
    hub.repos["ada/words"] = Repo()
    hub.repos["ada/words"].commit("main", {"config.json": b"{}"}, "put")
    assert "'ada/sd' of the hub holds a StableDiffusionPipeline, which is no pipeline of this project" in refused("ada/sd")
    assert "holds a DiT" in refused("ada/net")
    assert "model_index.json is damaged" in refused("ada/torn") and "damaged" in refused("ada/list")
    assert "'ada/words' of the hub holds no pipeline" in refused("ada/words")
    assert not any(path.endswith("safetensors") for path in hub.fetched()), "refused before the weights are fetched"
    missing = refused("ada/nothing")
    assert "'ada/nothing' does not exist here" in missing and hub.url in missing and "runs/NAME" in missing
    hub.repos["bob/secret"] = Repo(private=True)
    assert "private: `hf auth login`" in refused("bob/secret")
    assert "no name that a repository of the hub may have" in refused("ada/a--b")
    hub.broken = 500
    assert "'ada/tiny' does not exist here" in refused("ada/tiny") or "cannot be fetched" in refused("ada/tiny")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub_stub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(UserError, match="'ada/tiny' does not exist here, .* http://127.0.0.1:9 cannot be reached; give a run"):
        load_pipeline("ada/tiny")


def test_the_hubs_own_warnings_do_not_stand_beside_the_sentence() -> None:
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    with pytest.raises(UserError, match="cannot be reached"), explained("user/repo"):
        assert logging.get_verbosity() == logging.ERROR
        raise ConnectionError("no route")
    assert logging.get_verbosity() == before
