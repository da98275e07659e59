"""Official options and checkpoints of Open-MAGVIT2's tokenizers. Values are compared in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.files.read import read_checkpoints
from generative.convert.files.recognise import choose_parts, recognise
from generative.convert.tokenizers.open_magvit2_tokenizer import convert_tokenizer, recognise_tokenizer
from generative.core.errors import UserError
from generative.tokenizers.lfq import LFQTokenizer

DDCONFIG = {
    "double_z": False,
    "z_channels": 4,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 4,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
}
CONFIG: dict[str, Any] = {"ddconfig": DDCONFIG, "n_embed": 16, "embed_dim": 4, "norm_groups": 2}


def shapes_of_block(prefix: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    """A residual block: group norms with weights, convolutions without biases, a 1x1 shortcut where the width changes."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.norm1.{end}": (width,) for end in ("weight", "bias")}
    shapes |= {f"{prefix}.norm2.{end}": (out,) for end in ("weight", "bias")}
    shapes |= {f"{prefix}.conv1.weight": (out, width, 3, 3), f"{prefix}.conv2.weight": (out, out, 3, 3)}
    return shapes | ({f"{prefix}.nin_shortcut.weight": (out, width, 1, 1)} if width != out else {})


def conv(prefix: str, out: int, width: int, size: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.weight": (out, width, size, size)}
    return shapes | ({f"{prefix}.bias": (out,)} if bias else {})


def official_shapes(ch: int, ch_mult: list[int], num_res_blocks: int, z_channels: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of encoder and decoder as improved_model.py builds them."""
    widths = [ch * factor for factor in ch_mult]
    last = len(widths) - 1
    shapes = conv("encoder.conv_in", ch, 3, 3, bias=False)
    width = ch
    for level, out in enumerate(widths):
        for block in range(num_res_blocks):
            shapes |= shapes_of_block(f"encoder.down.{level}.block.{block}", out if block else width, out)
        shapes |= conv(f"encoder.down.{level}.downsample", out, out, 3) if level < last else {}
        width = out
    shapes |= conv("encoder.conv_out", z_channels, width, 1) | conv("decoder.conv_in", width, z_channels, 3)
    for half in ("encoder", "decoder"):
        for block in range(num_res_blocks):
            shapes |= shapes_of_block(f"{half}.mid_block.{block}", width, width)
    for level in reversed(range(len(widths))):
        out = widths[level]
        for name in ("gamma", "beta"):
            shapes |= {
                f"decoder.adaptive.{level}.{name}.weight": (width, z_channels),
                f"decoder.adaptive.{level}.{name}.bias": (width,),
            }
        for block in range(num_res_blocks):
            shapes |= shapes_of_block(f"decoder.up.{level}.block.{block}", out if block else width, out)
        shapes |= conv(f"decoder.up.{level}.upsample.conv1", 4 * out, out, 3) if level else {}
        width = out
    for half, normed in (("encoder", widths[-1]), ("decoder", widths[0])):
        shapes |= {f"{half}.norm_out.{end}": (normed,) for end in ("weight", "bias")}
    return shapes | conv("decoder.conv_out", 3, widths[0], 3)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Encoder and decoder for ``CONFIG``."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in official_shapes(4, [1, 2, 2], 1, 4).items()}


def lightning_state(seed: int = 0) -> dict[str, Tensor]:
    """A whole state dict: network, its average, discriminator and perceptual network and what is averaged of them."""
    raw, averages = tensors(seed), tensors(seed + 1)
    return {
        **raw,
        "loss.discriminator.main.0.weight": torch.zeros(2),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(3),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(-1, dtype=torch.int32),
        **{f"model_ema.{key.replace('.', '')}": value for key, value in averages.items()},
        "model_ema.lossdiscriminatormain0weight": torch.zeros(2),
    }


# The published configurations (configs/Open-MAGVIT2/gpu): ch_mult, bits, image size, tensors, parameters. Keys and shapes were
# compared with the official classes' on the meta device: all of them equal.
PUBLISHED = {
    "imagenet_256_L": ([1, 1, 2, 2, 4], 18, 256, 339, 115_127_829),
    "imagenet_128_L": ([1, 2, 2, 4], 18, 128, 283, 112_021_653),
    "pretrain_256_16384": ([1, 1, 2, 2, 4], 14, 256, 339, 115_094_033),
    "pretrain_256_262144": ([1, 1, 2, 2, 4], 18, 256, 339, 115_127_829),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_fit_at_full_size(name: str) -> None:
    ch_mult, bits, image_size, num_tensors, num_parameters = PUBLISHED[name]
    source = get_source("magvit2-tokenizer")
    with torch.device("meta"):
        raw = {key: torch.empty(shape) for key, shape in official_shapes(128, ch_mult, 4, bits).items()}
        state = {**raw, **{f"model_ema.{key.replace('.', '')}": value for key, value in raw.items()}}
        found = source.recognise(state)
        assert found is not None
        network = source.build(found)["model"]
        ours = network.state_dict()
        converted = source.convert_state("model", state, network)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    assert len(raw) == len(ours) == num_tensors and sum(value.numel() for value in ours.values()) == num_parameters
    assert (network.image_size, network.grid_size, network.num_codes) == (image_size, (16, 16), 2**bits)
    assert found["use_ema"] and network.config.norm_groups == 32


def loaded(state: dict[str, Tensor], **change: Any) -> LFQTokenizer:
    source = get_source("magvit2-tokenizer")
    networks = source.build(CONFIG | change)
    load_official(source, networks, state)
    network = networks["model"]
    assert isinstance(network, LFQTokenizer)
    return network


def test_the_average_is_taken_where_there_is_one() -> None:
    state = lightning_state()
    kernel = "encoder.conv_in.weight"
    averaged, raw = state["model_ema.encoderconv_inweight"], state[kernel]
    assert torch.equal(loaded(state).encoder.conv_in.weight, averaged)
    assert torch.equal(loaded(state, use_ema=True).encoder.conv_in.weight, averaged)
    assert torch.equal(loaded(state, use_ema=False).encoder.conv_in.weight, raw)
    assert torch.equal(loaded(tensors()).encoder.conv_in.weight, raw)
    found = recognise_tokenizer(state)
    assert found is not None and found["use_ema"] and not recognise_tokenizer(tensors())["use_ema"]
    assert torch.equal(convert_tokenizer(state, use_average=False)[kernel], raw)


def test_a_lightning_checkpoint_converts(tmp_path: Path) -> None:
    """Epoch, loops, callbacks and optimizer states lie beside the state dict."""
    path = tmp_path / "imagenet_256_L.ckpt"
    content = {
        "epoch": 269,
        "global_step": 10,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": lightning_state(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"monitor": None, "best_model_score": None, "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
    }
    torch.save(content, path)
    checkpoint = read_checkpoints([path])
    parts, left_out = choose_parts(checkpoint.parts, None)
    recognised = recognise(checkpoint, parts, None, {"norm_groups": 2})
    assert recognised.source.name == "magvit2-tokenizer" and left_out == []
    network = recognised.build()["model"]
    assert torch.equal(network.encoder.conv_in.weight, lightning_state()["model_ema.encoderconv_inweight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.embedding.weight": torch.zeros(1)}, "no place for the official keys quantize.embedding.weight"),
        ({"decoder.up.0.attn.0.q.weight": torch.zeros(1)}, "no place for the official keys decoder.up.0.attn.0.q.weight"),
        ({"model_ema.encoderunknownweight": torch.zeros(1)}, "no place for the official keys model_ema.encoderunknownweight"),
        ({"model_ema.encoderconv_inweight": None}, "averages some of the tokenizer's weights and lacks model_ema.encoderconv_in"),
        ({"encoder.conv_out.bias": None, "model_ema.encoderconv_outbias": None}, "lacks encoder.conv_out.bias"),
        ({"model_ema.encoderconv_outbias": torch.zeros(3)}, r"other shapes for encoder.conv_out.bias \(3,\) for \(4,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in (lightning_state() | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        loaded(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embed": 15}, "n_embed=15 of Open-MAGVIT2 is not supported here .*power of two"),
        ({"n_embed": 32}, "embed_dim=4 of Open-MAGVIT2 is not supported here; supported: 5, the bits of n_embed=32"),
        ({"embed_dim": 5}, "embed_dim=5 of Open-MAGVIT2"),
        ({"n_embed": 32, "embed_dim": 5}, "z_channels=4 of Open-MAGVIT2"),
        ({"factorized_bits": [2, 3]}, r"factorized_bits must be positive and add up to the 4 bits of a code, got \[2, 3\]"),
        ({"token_factorization": True}, r"add up to the 4 bits of a code, got \[9, 9\]"),
        ({"colorize_nlabels": 3}, "colorize_nlabels=3 of Open-MAGVIT2 is not supported"),
        ({"num_codebooks": 2}, "'num_codebooks' of Open-MAGVIT2 is unknown"),
        ({"image_size": 10}, "image_size must be a multiple of 4"),
        ({"norm_groups": None}, "does not tell norm_groups of VQModel of Open-MAGVIT2; give"),
        ({"ddconfig": DDCONFIG | {"attn_resolutions": [16]}}, "'attn_resolutions' of Open-MAGVIT2 is unknown"),
        ({"ddconfig": DDCONFIG | {"in_channels": 1}}, "in_channels=1 of Open-MAGVIT2 is not supported"),
        ({"ddconfig": DDCONFIG | {"ch_mult": [1, "2"]}}, "ch_mult of Open-MAGVIT2 must be a list of positive whole numbers"),
        ({"ddconfig": DDCONFIG | {"num_res_blocks": 0}}, "num_res_blocks of Open-MAGVIT2 must be a positive whole number, got 0"),
        ({"ddconfig": {"ch": 4}}, "ddconfig of Open-MAGVIT2 needs the option"),
        ({"ddconfig": None}, "options of ddconfig of Open-MAGVIT2 must be a mapping"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("magvit2-tokenizer").build(CONFIG | change)


def test_options_that_build_nothing_are_taken() -> None:
    change = {
        "lossconfig": {"target": "x"},
        "learning_rate": 1e-4,
        "scheduler_type": "None",
        "lr_drop_epoch": [200, 250],
        "token_factorization": True,
        "factorized_bits": [1, 3],
        "sample_minimization_weight": 0.5,
        "batch_maximization_weight": 2,
        "ddconfig": DDCONFIG | {"double_z": True, "resolution": 256},
        "image_size": 32,
    }
    config = get_source("magvit2-tokenizer").build(CONFIG | change)["model"].config
    assert (config.num_bits, config.sample_entropy_weight, config.codebook_entropy_weight, config.image_size) == (4, 0.5, 2.0, 32)


def test_other_layouts_are_not_recognised() -> None:
    source = get_source("magvit2-tokenizer")
    assert source.recognise({"linear.weight": torch.zeros(2, 2)}) is None
    vqgan = {key: value for key, value in tensors().items() if not key.startswith("decoder.adaptive")}
    assert source.recognise(vqgan) is None
    video = tensors() | {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3, 3)}
    assert source.recognise(video) is None
    assert source.recognise({f"generator/{key}": value for key, value in tensors().items()}) is None
    assert source.recognise({f"model/{key}": value for key, value in tensors().items()})["ddconfig"]["ch_mult"] == [1, 2, 2]


def test_the_pipeline_reconstructs() -> None:
    source = get_source("magvit2-tokenizer")
    networks = source.build(CONFIG | {"image_size": 8})
    load_official(source, networks, tensors())
    pipeline = source.pipeline(networks, CONFIG)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert pipeline.image_size == 8 and pipeline.reconstruct(images).shape == images.shape
