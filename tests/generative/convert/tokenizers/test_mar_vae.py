"""MAR's KL-16 autoencoder: the published layout on the meta device, attention as maps, other layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from generative.convert import get_source, load_official
from generative.convert.base import differences
from generative.core.errors import UserError

PUBLISHED: dict[str, Any] = {"embed_dim": 16, "ch": 128, "ch_mult": [1, 1, 2, 2, 4]}
NUM_TENSORS = 312


def official_shapes(embed_dim: int, ch: int, ch_mult: list[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official state dict."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int = 3) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", outputs, inputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", outputs, inputs, 1)

    def attention(name: str, size: int) -> None:
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", size, size, 1)

    widths = [ch * multiplier for multiplier in ch_mult]
    top = widths[-1]
    for part in ("encoder", "decoder"):
        block(f"{part}.mid.block_1", top, top)
        attention(f"{part}.mid.attn_1", top)
        block(f"{part}.mid.block_2", top, top)
    conv("encoder.conv_in", ch, 3)
    current = ch
    for level, width in enumerate(widths):
        for index in range(2):
            block(f"encoder.down.{level}.block.{index}", current, width)
            current = width
            if 256 >> level == 16:
                attention(f"encoder.down.{level}.attn.{index}", width)
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    norm("encoder.norm_out", top)
    conv("encoder.conv_out", 2 * embed_dim, top)
    conv("decoder.conv_in", top, embed_dim)
    for level in reversed(range(len(widths))):
        for index in range(3):
            block(f"decoder.up.{level}.block.{index}", current, widths[level])
            current = widths[level]
        if level:
            conv(f"decoder.up.{level}.upsample.conv", current, current)
    norm("decoder.norm_out", ch)
    conv("decoder.conv_out", 3, ch)
    conv("quant_conv", 2 * embed_dim, 2 * embed_dim, 1)
    conv("post_quant_conv", embed_dim, embed_dim, 1)
    return shapes


def test_the_published_checkpoint_is_recognised_and_every_tensor_finds_its_place() -> None:
    shapes = official_shapes(**PUBLISHED)
    assert len(shapes) == NUM_TENSORS
    source = get_source("mar-vae")
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        assert source.recognise(state) == PUBLISHED
        network = source.build(PUBLISHED)["model"]
        converted = source.convert_state("model", state | {"loss.logvar": torch.empty(())}, network)
    assert not any(differences(converted, network.state_dict()).values())
    assert network.config.scaling_factor == 0.2325


def test_a_small_one_loads_and_reconstructs() -> None:
    source, config = get_source("mar-vae"), {"embed_dim": 2, "ch": 32, "ch_mult": [1, 1, 1, 1, 2]}
    state = {key: torch.randn(shape) * 0.05 for key, shape in official_shapes(**config).items()}
    networks = source.build(config)
    load_official(source, networks, state)
    network = networks["model"]
    ours = network.encoder.down_blocks[4].attentions[1].to_q.weight
    assert torch.equal(ours, state["encoder.down.4.attn.1.q.weight"][:, :, 0, 0])
    assert torch.equal(network.decoder.up_blocks[0].resnets[2].conv1.weight, state["decoder.up.4.block.2.conv1.weight"])
    pipeline = source.pipeline(networks, config)
    assert pipeline.reconstruct(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3, 32, 32)


def test_other_layouts_are_not_its_own() -> None:
    source = get_source("mar-vae")
    state = {key: torch.empty(shape, device="meta") for key, shape in official_shapes(2, 32, [1, 1, 1, 1, 2]).items()}
    assert source.recognise(state | {"decoder.up.4.attn.0.q.weight": torch.empty(0)}) is None
    assert source.recognise(state | {"quantize.embedding.weight": torch.empty(0)}) is None
    assert source.recognise(state | {"quant_conv.weight": torch.empty(2, 4, 1, 1)}) is None
    network = source.build({"embed_dim": 2, "ch": 32, "ch_mult": [1, 1, 1, 1, 2]})["model"]
    with pytest.raises(UserError, match="no place for the official keys encoder.mid.attn_1.zz.weight"):
        source.convert_state("model", {"encoder.mid.attn_1.zz.weight": torch.empty(0)}, network)
    with pytest.raises(UserError, match="use_variational=False of LTH14/mar is not supported"):
        source.build({"use_variational": False})
    with pytest.raises(UserError, match="ch_mult of LTH14/mar must be a list of positive whole numbers"):
        source.build({"ch_mult": [1, 0]})
