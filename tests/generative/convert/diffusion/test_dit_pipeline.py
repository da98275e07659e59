"""Folders of diffusers' ``DiTPipeline``, side by side with diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.core.errors import UserError
from pipelines import load_pipeline

CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,  # diffusers' pipeline takes 1000 for the null label whatever the table
}


def transformer(**options: Any) -> DiTTransformer2DModel:
    """Random weights, those of the embedders the same in all blocks, as in the published folders."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**CONFIG | options).eval()
    embedder = network.transformer_blocks[0].norm1.emb
    torch.nn.init.normal_(embedder.class_embedder.embedding_table.weight)
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(embedder.state_dict())
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, **kinds)
    labels = {
        0: "tench, Tinca tinca",
        1: "goldfish, Carassius auratus",
        **{number: f"class {number}" for number in range(2, 1000)},
    }
    path = tmp_path_factory.mktemp("dit") / "DiT-tiny"
    DiTPipeline(transformer(), vae, DDIMScheduler(clip_sample=False), id2label=labels).save_pretrained(path)
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"id2label": labels}))
    return path


@torch.no_grad()
@pytest.mark.parametrize("norm_eps", [1e-5, 1e-6])
def test_the_network_is_diffusers_own(norm_eps: float) -> None:
    theirs, source = transformer(norm_eps=norm_eps), get_source("dit-pipeline")
    networks = source.build(CONFIG | {"norm_eps": norm_eps})
    assert networks["model"].blocks[0].norm2.eps == theirs.transformer_blocks[0].norm3.eps
    load_official(source, networks, theirs.state_dict())
    sample, time, labels = torch.randn(4, 4, 8, 8), torch.tensor([0, 1, 500, 999]), torch.tensor([0, 1, 999, 1000])
    output = networks["model"].eval()(sample, time, labels)
    ours = torch.cat([output.prediction, output.variance], dim=1)
    torch.testing.assert_close(ours, theirs(sample, time, labels).sample, atol=1e-5, rtol=1e-5)


def test_a_folder_becomes_a_pipeline(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "lacks" not in capsys.readouterr().out
    pipeline = load_pipeline(tmp_path / "out")
    assert (
        pipeline.class_names == ["tench", "goldfish", *(f"class {number}" for number in range(2, 1000))]
        and pipeline.image_size == 16
    )
    assert type(pipeline.scheduler) is DDIMScheduler and pipeline.formulation.config.learned_variance
    assert pipeline.sampling_defaults == {"num_inference_steps": 50, "guidance_scale": 4.0}
    theirs = DiTPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for guidance in (1.0, 4.0):  # the same noise and steps, to the pixels
        common = {"guidance_scale": guidance, "num_inference_steps": 5, "output_type": "np"}
        images = pipeline(["goldfish"], generator=[torch.Generator().manual_seed(0)], **common)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *args, **kwargs: noise)
            wanted = theirs([1], **common)
        assert abs(images.images - wanted.images).max() < 1e-4


@pytest.mark.parametrize("file", [None, "transformer/diffusion_pytorch_model.safetensors.index.json"])
def test_weights_in_several_files(folder: Path, tmp_path: Path, file: str | None) -> None:
    """As ``save_pretrained(max_shard_size=...)`` writes network and autoencoder; the folder, or the network by its index."""
    pieces = tmp_path / "pieces"
    DiTPipeline.from_pretrained(folder).save_pretrained(pieces, max_shard_size="5KB")
    names = sorted(path.name for path in (pieces / "transformer").glob("*.safetensors"))
    assert len(names) > 2 and len(list((pieces / "vae").glob("*.safetensors"))) > 1
    (pieces / "model_index.json").write_text((folder / "model_index.json").read_text())
    (tmp_path / "options.json").write_text(json.dumps(CONFIG))
    given = [str(pieces)] if file is None else [str(pieces / file), "--config", str(tmp_path / "options.json")]
    assert main(["convert", str(folder), "--output", str(tmp_path / "whole")]) == 0
    assert main(["convert", *given, "--output", str(tmp_path / "out")]) == 0
    pipeline, whole = load_pipeline(tmp_path / "out"), load_pipeline(tmp_path / "whole")
    assert same_weights(pipeline.denoiser, whole.denoiser)
    if file is None:
        assert same_weights(pipeline.autoencoder, whole.autoencoder) and pipeline.class_names == whole.class_names
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert sorted(record["files"]) == sorted([*names, "diffusion_pytorch_model.safetensors.index.json"])


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_lacks_of_several_files_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DiTPipeline.from_pretrained(folder).save_pretrained(tmp_path / "pieces", max_shard_size="20KB")
    network = tmp_path / "pieces" / "transformer"
    index = network / "diffusion_pytorch_model.safetensors.index.json"
    pieces = sorted(network.glob("*.safetensors"))

    def failure(*given: Path) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, given), "--output", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert f"'{pieces[0]}' is a file of several; give its index, '{index}'" in failure(pieces[0])
    pieces[1].rename(tmp_path / "elsewhere")
    for given in (tmp_path / "pieces", index):
        assert f"names '{pieces[1].name}', which does not lie beside it; get all {len(pieces)} files" in failure(given)
    index.write_text("{")
    assert "index.json' is damaged; it must say which file holds which tensor" in failure(index)
    index.unlink()
    assert "nor an index of them (diffusion_pytorch_model.safetensors.index.json); get the whole" in failure(tmp_path / "pieces")


def test_what_does_not_fit_is_told_in_a_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, state = get_source("dit-pipeline"), transformer().state_dict()
    other = state | {"transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias": torch.ones(16)}
    with pytest.raises(UserError, match="differs from that of the first block; DiT has one embedder"):
        load_official(source, source.build(CONFIG), other)
    for change, message in (
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm' of huggingface/diffusers is not supported"),
        ({"out_channels": 5}, "out_channels must be in_channels 4 or twice, got 5"),
        ({"scheduler": {"_class_name": "IPNDMScheduler"}}, "the folder's scheduler is IPNDMScheduler; it must be one of"),
        ({"attention_head_dim": None}, "attention_head_dim must be a positive whole number, got None"),
        ({"norm_eps": 0.5}, "norm_eps=0.5 of huggingface/diffusers is not supported"),
        ({"rope": True}, "option 'rope' of huggingface/diffusers is unknown here"),
    ):
        with pytest.raises(UserError, match=message):
            source.build(CONFIG | change)
    found = source.recognise(state)
    assert found is not None and found["num_layers"] == 2 and found["num_embeds_ada_norm"] == 1000
    with pytest.raises(UserError, match='give {"num_attention_heads": N} in --config'):
        source.build(found)
    assert source.build(found | {"num_attention_heads": 4})["model"].config.hidden_size == 16
    for change in ({"num_attention_heads": 3}, {"num_attention_heads": 4, "attention_head_dim": 72}):
        with pytest.raises(UserError, match="do not make the checkpoint's width 16; give heads that divide it"):
            source.build(found | change)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    capsys.readouterr()
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "holds a StableDiffusionPipeline; pipelines of diffusers that are converted are DiTPipeline" in capsys.readouterr().err
