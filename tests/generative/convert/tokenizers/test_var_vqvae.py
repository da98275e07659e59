"""VAR's VQVAE: the published layout, options read off it, options refused. Values are compared in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vqgan_shapes import Shapes, block, conv, norm

from generative.convert import get_source, load_official
from generative.convert.base import differences
from generative.convert.tokenizers.var_vqvae import build_vqvae, convert_vqvae_state, recognise_vqvae
from generative.core.errors import UserError

TINY: dict[str, Any] = {
    "vocab_size": 12,
    "z_channels": 4,
    "ch": 4,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "norm_groups": 2,
    "v_patch_nums": [1, 2, 4],
}


def attention(name: str, width: int) -> Shapes:
    return norm(f"{name}.norm", width) | conv(f"{name}.qkv", width, 3 * width, 1) | conv(f"{name}.proj_out", width, width, 1)


def side(name: str, levels: str, widths: list[int], before: list[int], num_blocks: int, resample: str) -> Shapes:
    """Levels and middle of encoder or decoder; ``before`` is the width that comes into each level."""
    last = len(widths) - 1
    shapes = block(f"{name}.mid.block_1", widths[-1], widths[-1]) | block(f"{name}.mid.block_2", widths[-1], widths[-1])
    shapes |= attention(f"{name}.mid.attn_1", widths[-1])
    for level, width in enumerate(widths):
        for index in range(num_blocks):
            shapes |= block(f"{name}.{levels}.{level}.block.{index}", width if index else before[level], width)
            if level == last:
                shapes |= attention(f"{name}.{levels}.{level}.attn.{index}", width)
        if level != (last if resample == "downsample" else 0):
            shapes |= conv(f"{name}.{levels}.{level}.{resample}.conv", width, width)
    return shapes


def official_shapes(
    ch: int, ch_mult: list[int], num_res_blocks: int, num_codes: int, width: int, num_scales: int, num_phis: int = 4
) -> Shapes:
    """Keys and shapes of the official class, as its published file ``vae_ch160v4096z32.pth`` has them at full size."""
    widths = [ch * factor for factor in ch_mult]
    shapes = conv("encoder.conv_in", 3, ch) | norm("encoder.norm_out", widths[-1]) | conv("encoder.conv_out", widths[-1], width)
    shapes |= side("encoder", "down", widths, [ch, *widths[:-1]], num_res_blocks, "downsample")
    shapes |= conv("decoder.conv_in", width, widths[-1]) | norm("decoder.norm_out", ch * ch_mult[0])
    shapes |= conv("decoder.conv_out", ch * ch_mult[0], 3)
    shapes |= side("decoder", "up", widths, [*widths[1:], widths[-1]], num_res_blocks + 1, "upsample")
    shapes |= conv("quant_conv", width, width) | conv("post_quant_conv", width, width)
    for index in range(num_phis):
        shapes |= conv(f"quantize.quant_resi.qresi_ls.{index}", width, width)
    return shapes | {"quantize.embedding.weight": (num_codes, width), "quantize.ema_vocab_hit_SV": (num_scales, num_codes)}


def tiny_state() -> dict[str, Tensor]:
    shapes = official_shapes(4, [1, 2], 1, 12, 4, 3)
    return {key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(sorted(shapes.items()))}


def test_the_published_file_fits() -> None:
    """Every key and shape at full size, and the options that they tell: those of the published model."""
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(160, [1, 1, 2, 2, 4], 2, 4096, 32, 10).items()}
        config = recognise_vqvae(state)
        assert config is not None
        network = build_vqvae(config)
    assert len(state) == 324 and sum(value.numel() for value in state.values()) == 108_989_315
    assert not any(differences(convert_vqvae_state(state, network), network.state_dict()).values())
    assert network.patch_nums == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) and network.image_size == 256
    assert network.quantizer.phi_of_scale == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert (network.config.norm_groups, network.config.quant_resi, network.config.using_znorm) == (32, 0.5, False)
    with torch.device("meta"):  # the same file serves 512 pixels
        larger = build_vqvae(config | {"v_patch_nums": [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]})
    assert larger.image_size == 512 and not any(differences(network.state_dict(), larger.state_dict()).values())


def test_every_tensor_finds_its_own_place() -> None:
    source, state = get_source("var-vqvae"), tiny_state()
    networks = source.build(TINY)
    load_official(source, networks, state)
    loaded = sorted(tensor.flatten()[0].item() for tensor in networks["model"].state_dict().values())
    counts = sorted(state).index("quantize.ema_vocab_hit_SV")
    assert loaded == [float(index) for index in range(len(state)) if index != counts]
    ours = networks["model"].state_dict()
    # The decoder's levels run from the lowest resolution, the official ones are numbered from the highest.
    assert torch.equal(ours["decoder.levels.0.blocks.1.conv1.weight"], state["decoder.up.1.block.1.conv1.weight"])
    assert torch.equal(ours["decoder.upsamples.0.conv.weight"], state["decoder.up.1.upsample.conv.weight"])
    assert torch.equal(ours["encoder.mid.1.out.bias"], state["encoder.mid.attn_1.proj_out.bias"])
    assert torch.equal(ours["quantizer.phis.3.weight"], state["quantize.quant_resi.qresi_ls.3.weight"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("qresi_ls.{}", {"share_quant_resi": 4, "default_qresi_counts": 0, "quant_resi": 0.5}),
        ("{}", {"share_quant_resi": 0, "default_qresi_counts": 4, "quant_resi": 0.5}),
        ("qresi", {"share_quant_resi": 1, "default_qresi_counts": 0, "quant_resi": 0.5}),
        (None, {"quant_resi": 0.0}),
    ],
)
def test_how_phis_are_shared_is_read_off(names: str | None, expected: dict[str, Any]) -> None:
    state = {key: value for key, value in tiny_state().items() if "quant_resi" not in key}
    for index in range(4 if names and "{}" in names else bool(names)):
        state |= {f"quantize.quant_resi.{names.format(index)}.{key}": value for key, value in phi_tensors().items()}
    found = recognise_vqvae(state)
    assert found is not None and expected.items() <= found.items()
    network = build_vqvae(found | {"norm_groups": 2, "v_patch_nums": [1, 2, 4]})
    assert not any(differences(convert_vqvae_state(state, network), network.state_dict()).values())


def phi_tensors() -> dict[str, Tensor]:
    return {"weight": torch.zeros(4, 4, 3, 3), "bias": torch.zeros(4)}


def test_what_a_checkpoint_does_not_tell_is_asked_for() -> None:
    found = recognise_vqvae(tiny_state())
    assert found is not None and found["norm_groups"] is None and found["v_patch_nums"] is None
    with pytest.raises(UserError, match=r'does not tell v_patch_nums .* give {"v_patch_nums": \[...\]} in --config'):
        build_vqvae(found | {"norm_groups": 2})
    with pytest.raises(UserError, match=r'does not tell norm_groups .* give {"norm_groups": N} in --config'):
        build_vqvae(found | {"v_patch_nums": [1, 2, 4]})
    told = found | {"v_patch_nums": [1, 2, 4], "norm_groups": 2}
    assert {key: told[key] for key in TINY} == TINY


def test_another_layout_is_not_recognised() -> None:
    state = tiny_state()
    assert recognise_vqvae({key: value for key, value in state.items() if key != "quant_conv.weight"}) is None
    # A VQGAN of taming-transformers has most of these keys, and no phi.
    assert recognise_vqvae({key: value for key, value in state.items() if "quant_resi" not in key and "ema" not in key}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": 3}, "option 'codebook' of FoundationVision/VAR is unknown here"),
        ({"vocab_size": 12.5}, "vocab_size of FoundationVision/VAR must be a whole number, got 12.5"),
        ({"using_znorm": 1}, "using_znorm of FoundationVision/VAR must be True or False, got 1"),
        ({"v_patch_nums": [1, 0, 4]}, r"v_patch_nums .* must be a list of positive whole numbers, got \[1, 0, 4\]"),
        ({"in_channels": 1}, "in_channels=1 .* is not supported here, images have three channels; supported: 3"),
        ({"phi_index_of_scale": [0, 1, 2]}, r"phi_index_of_scale=\[0, 1, 2\] .* supported: \[0, 2, 3\]"),
        ({"quant_conv_ks": 4}, "quant_conv_ks must be odd"),
        ({"share_quant_resi": -2}, "must not be negative"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_vqvae(TINY | change)


def test_options_that_build_nothing_are_taken() -> None:
    network = build_vqvae(TINY | {"test_mode": False, "beta": 1.0, "phi_index_of_scale": [0, 2, 3], "nrb": 2})
    assert network.config.num_res_blocks == 1  # the full name wins
    assert (
        build_vqvae({key: value for key, value in TINY.items() if key != "num_res_blocks"} | {"nrb": 3}).config.num_res_blocks
        == 3
    )


def test_left_over_and_missing_tensors_are_refused() -> None:
    source, state = get_source("var-vqvae"), tiny_state()
    with pytest.raises(UserError, match="no place for the official keys quantize.other"):
        load_official(source, source.build(TINY), state | {"quantize.other": torch.zeros(1)})
    del state["decoder.up.1.upsample.conv.bias"]
    with pytest.raises(UserError, match="lacks decoder.upsamples.0.conv.bias"):
        load_official(source, source.build(TINY), state)


def test_the_pipeline_reconstructs() -> None:
    source = get_source("var-vqvae")
    pipeline = source.pipeline(source.build(TINY), TINY)
    assert pipeline.image_size == 8 and pipeline.reconstruct(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
