"""Slim folders: the same images from weights in half precision, files of bounded size, and values that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import save_tiny_dit, tiny_gan

from generative.core.errors import UserError
from generative.core.weights import load_network
from pipelines import DiffusionImagePipeline, GANImagePipeline, load_any_pipeline
from pipelines.slim import networks_of, save_slim


def images(pipeline: GANImagePipeline) -> torch.Tensor:
    found: torch.Tensor = pipeline([0, 1, 2], generator=torch.Generator().manual_seed(0), output_type="pt").images
    return found


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 0.0), ("float16", 0.01), ("bfloat16", 0.08)])
def test_half_of_the_bytes_gives_nearly_the_same_images(tmp_path: Path, dtype: str, largest: float) -> None:
    whole = images(tiny_gan())
    save_slim(tiny_gan(), tmp_path / "slim", dtype)
    stored = load_file(tmp_path / "slim" / "generator" / "diffusion_pytorch_model.safetensors")
    floating = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    assert floating == {getattr(torch, dtype)}
    loaded = GANImagePipeline.from_pretrained(tmp_path / "slim")
    assert {t.dtype for t in loaded.generator.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert float((images(loaded) - whole).abs().max()) <= largest
    assert torch.equal(images(load_any_pipeline(tmp_path / "slim")), images(loaded))
    network, _ = load_network(tmp_path / "slim", "generator")
    assert network.dtype == torch.float32


def test_another_precision_may_be_asked_for(tmp_path: Path) -> None:
    save_slim(tiny_gan(), tmp_path / "slim", "float16")
    loaded = GANImagePipeline.from_pretrained(tmp_path / "slim", torch_dtype=torch.bfloat16)
    assert loaded.generator.dtype == torch.bfloat16


def test_weights_come_in_files_of_bounded_size(tmp_path: Path) -> None:
    pipeline = DiffusionImagePipeline.from_pretrained(save_tiny_dit(tmp_path / "whole", hidden_size=32))
    expected = {name: tensor.clone() for name, tensor in pipeline.denoiser.state_dict().items()}
    save_slim(pipeline, tmp_path / "slim", max_shard_size="40KB")
    shards = sorted((tmp_path / "slim" / "denoiser").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 45_000 for path in shards)
    for loaded in (
        DiffusionImagePipeline.from_pretrained(tmp_path / "slim").denoiser,
        load_network(tmp_path / "slim", "denoiser")[0],
    ):
        found = loaded.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    pipeline = tiny_gan()
    next(pipeline.generator.parameters()).data.flatten()[0] = 7e4
    with pytest.raises(UserError, match=r"'generator' holds a value that float16 has no room for \(.*, up to 7e\+04\)"):
        save_slim(pipeline, tmp_path / "slim", "float16")
    assert not (tmp_path / "slim").exists()
    for arguments, message in (
        (("int8", "5GB"), "dtype 'int8' is none"),
        (("float16", "5 GiB"), "max_shard_size '5 GiB' is no size"),
        (("float16", "0GB"), "max_shard_size '0GB' is no size"),
    ):
        with pytest.raises(UserError, match=message):
            save_slim(tiny_gan(), tmp_path / "slim", *arguments)


def test_counters_and_tables_stay(tmp_path: Path) -> None:
    pipeline = tiny_gan()
    pipeline.generator.register_buffer("table", torch.linspace(0, 1, 3, dtype=torch.float64), persistent=False)
    save_slim(pipeline, tmp_path / "slim", "float16")
    assert pipeline.generator.table.dtype == torch.float64
    assert [name for name, _ in networks_of(pipeline)] == ["generator"]
