"""LlamaGen's VQ: the published layouts, options read off them, options refused. Values are compared in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vqgan_shapes import Shapes, block, conv, norm

from generative.convert.base import UnknownKeysError, differences
from generative.convert.tokenizers.llamagen_vq import build_vq, convert_vq_state, official_losses, recognise_vq
from generative.core.errors import UserError

TINY: dict[str, Any] = {
    "codebook_size": 12,
    "codebook_embed_dim": 4,
    "z_channels": 6,
    "ch": 4,
    "encoder_ch_mult": [1, 2],
    "decoder_ch_mult": [1, 2],
    "num_res_blocks": 1,
    "norm_groups": 2,
    "image_size": 8,
}


def attention(name: str, width: int) -> Shapes:
    parts = [conv(f"{name}.{part}", width, width, 1) for part in ("q", "k", "v", "proj_out")]
    return norm(f"{name}.norm", width) | {key: shape for part in parts for key, shape in part.items()}


def side(name: str, widths: list[int], before: list[int], num_blocks: int, lowest: int, resample: str) -> Shapes:
    """Levels and middle of encoder or decoder in the order in which they run."""
    width = widths[lowest]
    shapes = block(f"{name}.mid.0", width, width) | attention(f"{name}.mid.1", width) | block(f"{name}.mid.2", width, width)
    for level, width in enumerate(widths):
        for index in range(num_blocks):
            shapes |= block(f"{name}.conv_blocks.{level}.res.{index}", width if index else before[level], width)
            if level == lowest:
                shapes |= attention(f"{name}.conv_blocks.{level}.attn.{index}", width)
        if level != len(widths) - 1:
            shapes |= conv(f"{name}.conv_blocks.{level}.{resample}.conv", width, width)
    return shapes


def official_shapes(ch: int, ch_mult: list[int], num_res_blocks: int, num_codes: int, code_dim: int, z_channels: int) -> Shapes:
    """Keys and shapes of the official class, as the published files have them at full size."""
    widths = [ch * factor for factor in ch_mult]
    shapes = conv("encoder.conv_in", 3, ch) | norm("encoder.norm_out", widths[-1])
    shapes |= conv("encoder.conv_out", widths[-1], z_channels)
    shapes |= side("encoder", widths, [ch, *widths[:-1]], num_res_blocks, len(widths) - 1, "downsample")
    shapes |= conv("decoder.conv_in", z_channels, widths[-1]) | norm("decoder.norm_out", widths[0])
    shapes |= conv("decoder.conv_out", widths[0], 3)
    shapes |= side("decoder", widths[::-1], [widths[-1], *widths[:0:-1]], num_res_blocks + 1, 0, "upsample")
    shapes |= conv("quant_conv", z_channels, code_dim, 1) | conv("post_quant_conv", code_dim, z_channels, 1)
    return shapes | {"quantize.embedding.weight": (num_codes, code_dim), "quantize.codebook_used": (65536,)}


def tiny_state() -> dict[str, Tensor]:
    shapes = official_shapes(4, [1, 2], 1, 12, 4, 6)
    return {key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(sorted(shapes.items()))}


@pytest.mark.parametrize(
    ("ch_mult", "num_tensors", "num_values"),
    [([1, 1, 2, 2, 4], 344, 71_948_939), ([1, 2, 2, 4], 300, 70_175_371)],
    ids=["vq_ds16_c2i.pt", "vq_ds8_c2i.pt"],
)
def test_the_published_files_fit(ch_mult: list[int], num_tensors: int, num_values: int) -> None:
    """Every key and shape at full size, and the options that they tell: the official defaults."""
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(128, ch_mult, 2, 16384, 8, 256).items()}
        config = recognise_vq(state)
        assert config is not None
        network = build_vq(config)
    assert (len(state), sum(value.numel() for value in state.values())) == (num_tensors, num_values)
    assert not any(differences(convert_vq_state(state, network), network.state_dict()).values())
    with torch.device("meta"):
        official = build_vq({"encoder_ch_mult": ch_mult, "decoder_ch_mult": ch_mult})
    assert network.config == official.config and network.config.l2_norm and network.image_size == 256


def test_every_tensor_finds_its_own_place() -> None:
    state = tiny_state()
    network = build_vq(TINY)
    ours = convert_vq_state(state, network)
    assert not any(differences(ours, network.state_dict()).values())
    found = sorted({value for tensor in ours.values() for value in tensor.flatten().tolist()})
    used = sorted(state).index("quantize.codebook_used")
    assert found == [float(index) for index in range(len(state)) if index != used]
    query, key, value = ours["encoder.mid.1.qkv.weight"].chunk(3)
    for part, tensor in {"q": query, "k": key, "v": value}.items():
        assert torch.equal(tensor, state[f"encoder.mid.1.{part}.weight"])
    # Both number the decoder's levels as they run.
    assert torch.equal(ours["decoder.levels.0.blocks.1.conv2.bias"], state["decoder.conv_blocks.0.res.1.conv2.bias"])
    assert torch.equal(ours["decoder.upsamples.0.conv.weight"], state["decoder.conv_blocks.0.upsample.conv.weight"])


def test_options_are_read_off_and_the_groups_asked_for() -> None:
    state = tiny_state()
    found = recognise_vq(state)
    assert found is not None and found["norm_groups"] is None and found["codebook_show_usage"] is True
    with pytest.raises(UserError, match=r'does not tell norm_groups .* give {"norm_groups": N} in --config'):
        build_vq(found)
    told = found | {"norm_groups": 2, "image_size": 8}
    assert {key: told[key] for key in TINY} == TINY
    del state["quantize.codebook_used"]
    assert (recognise_vq(state) or {})["codebook_show_usage"] is False
    del state["quant_conv.weight"]
    assert recognise_vq(state) is None


def test_tensors_that_do_not_fit_are_told() -> None:
    network, state = build_vq(TINY), tiny_state()
    with pytest.raises(UnknownKeysError, match="no place for the official keys quantize.other"):
        convert_vq_state(state | {"quantize.other": torch.zeros(1)}, network)
    with pytest.raises(UserError, match="q, k and v of 'encoder.mid.1.qkv.weight' must have one shape"):
        convert_vq_state(state | {"encoder.mid.1.k.weight": torch.zeros(8, 4, 1, 1)}, network)
    del state["encoder.mid.1.k.weight"]
    lacking = differences(convert_vq_state(state, network), network.state_dict())
    assert lacking == {"lacks": ["encoder.mid.1.qkv.weight"], "has no place for": [], "has other shapes for": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": 3}, "option 'codebook' of FoundationVision/LlamaGen is unknown here"),
        ({"codebook_size": "many"}, "codebook_size of FoundationVision/LlamaGen must be a whole number, got 'many'"),
        ({"codebook_l2_norm": 1}, "codebook_l2_norm of FoundationVision/LlamaGen must be True or False, got 1"),
        ({"encoder_ch_mult": 4}, "encoder_ch_mult .* must be a list of positive whole numbers, got 4"),
        ({"decoder_ch_mult": [1, 2, 2]}, "decoder_ch_mult must have as many resolutions"),
        ({"image_size": 9}, "image_size must be a multiple of 2"),
        ({"in_channels": 1}, "in_channels=1 .* is not supported here, images have three channels"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_vq(TINY | change)


def test_weights_of_the_official_losses() -> None:
    losses = {name: torch.tensor(value) for name, value in {"codebook": 2.0, "commitment": 3.0, "entropy": 5.0}.items()}
    assert official_losses(losses, {}).tolist() == [2.0, 0.75, 0.0]
    assert official_losses(losses, {"commit_loss_beta": 1.0, "entropy_loss_ratio": 0.5}).tolist() == [2.0, 3.0, 2.5]
    del losses["entropy"]
    assert official_losses(losses, {"entropy_loss_ratio": 0.0}).tolist() == [2.0, 0.75, 0.0]
