"""MAGE's checkpoints: options, keys of the published sizes, and the tokenizer that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generative.autoregressive.masked.mage import MAGE_SIZES
from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.convert.autoregressive.mage import KEY_PATTERNS
from generative.convert.keys import rename_by
from generative.core.errors import UserError
from generative.tokenizers.maskgit_vq import MaskGITVQTokenizer
from pipelines import load_any_pipeline

VECTORS = Path(__file__).parents[3] / "parity" / "vectors"
NET = {"embed_dim": 32, "depth": 2, "num_heads": 4, "decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}


def file_state(name: str) -> dict[str, Tensor]:
    tensors = load_file(VECTORS / f"{name}-a.safetensors")
    return {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}


def tokenizer_state(tokenizer: MaskGITVQTokenizer) -> dict[str, Tensor]:
    """Our tensors by their official names, ``vqgan.`` before them."""
    last = len(tokenizer.config.ch_mult) - 1
    state = {}
    for key, value in tokenizer.state_dict().items():
        parts = key.split(".")
        if parts[1] == "mid":
            parts[1:3] = ["mid", f"block_{int(parts[2]) + 1}"]
        elif parts[1] == "levels":
            level = int(parts[2]) if parts[0] == "encoder" else last - int(parts[2])
            parts[1:3] = ["down" if parts[0] == "encoder" else "up", str(level), "block"]
        elif parts[1] == "upsamples":
            parts[1:3] = ["up", str(last - int(parts[2])), "upsample"]
        name = ".".join(parts).replace(".shortcut.", ".nin_shortcut.").replace("quantizer.codebook", "quantize.embedding.weight")
        state[f"vqgan.{name}"] = value
    return state


@pytest.mark.parametrize(("size", "condition"), [("B", "use_rep"), ("L", "use_rep"), ("L", "use_class_label"), ("H", None)])
def test_published_sizes(size: str, condition: str | None) -> None:
    sizes = MAGE_SIZES[size]
    net = {"embed_dim": sizes["hidden_size"], "depth": sizes["depth"], "num_heads": sizes["num_heads"]}
    net |= {"decoder_embed_dim": sizes["hidden_size"], "use_rep": False} | ({condition: True} if condition else {})
    source = get_source("mage")
    with torch.device("meta"):
        network = source.build({"net": net})["model"]
    assert network.config.num_spare_ids == 1000 and network.token_embedding.num_embeddings == 2025
    # Every one of our keys is what some official key becomes.
    small = source.build(
        {"codebook_size": 20, "net": NET | {"use_rep": False, "rep_dim": 16} | ({condition: True} if condition else {})}
    )
    official = file_state("mage") | file_state("mage_class")
    reached = {rename_by(KEY_PATTERNS, key) for key in official}
    assert set(small["model"].state_dict()) <= reached


def test_a_whole_checkpoint_becomes_a_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = MaskGITVQTokenizer(256, 20, 8, ch=32, ch_mult=(1, 1, 1, 2, 1), num_res_blocks=1)
    whole = file_state("mage") | tokenizer_state(tokenizer) | {"pretrained_encoder.pos_embed": torch.zeros(1)}
    torch.save({"model": whole, "epoch": 1}, tmp_path / "mage.pth")
    (tmp_path / "heads.json").write_text('{"net": {"num_heads": 4, "decoder_num_heads": 4}}')
    command = [
        "convert",
        str(tmp_path / "mage.pth"),
        "--config",
        str(tmp_path / "heads.json"),
        "--output",
        str(tmp_path / "pipeline"),
    ]
    assert main(command) == 0
    pipeline = load_any_pipeline(tmp_path / "pipeline")
    assert pipeline.sampling_defaults["num_inference_steps"] == 20 and pipeline.image_size == 256
    ours = pipeline.tokenizer.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in tokenizer.state_dict().items())
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    ids = tokenizer.eval().encode(images)
    assert ids.shape == (1, 256) and torch.equal(ids, pipeline.tokenizer.encode(images))
    assert tokenizer.decode(ids).shape == images.shape


def test_a_checkpoint_without_tokenizer_makes_no_images() -> None:
    source = get_source("mage")
    config: dict[str, Any] = {"codebook_size": 20, "net": NET | {"rep_dim": 16}}
    networks = source.build(config)
    load_official(source, networks, file_state("mage"))
    with pytest.raises(UserError, match="holds MAGE without the tokenizer"):
        source.pipeline(networks, config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"net": NET | {"heads": 3}}, "'heads' of LTH14/rcg is unknown here"),
        ({"net": NET | {"use_class_label": True}}, "use_rep and use_class_label of LTH14/rcg exclude one another"),
        (
            {"net": NET | {"use_rep": False, "use_class_label": True}, "cfg": 1.0},
            "cfg of LTH14/rcg must be 0 with use_class_label",
        ),
        ({"net": NET | {"img_size": 512}}, "img_size of LTH14/rcg must be 16 times patch_size 16"),
        ({"net": NET | {"mask_ratio_std": 0.0}}, "std of the share of masked tokens must be positive"),
        ({"num_iter": 300}, r"num_inference_steps must be in 1\.\.256"),
        ({"vqgan": {"n_embed": 30, "ch": 32, "ch_mult": [1, 1, 1, 1, 1]}}, "the tokenizer has 30 codes on a grid of"),
        ({"vqgan": {"attn": 1}}, "'attn' of LTH14/rcg is unknown here"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        get_source("mage").build({"codebook_size": 20, "net": NET} | change)
    assert "\n" not in str(caught.value)
