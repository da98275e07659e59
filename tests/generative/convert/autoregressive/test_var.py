"""VAR's official layout: every published file on the meta device, options from shapes, constants, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.autoregressive.var import PATCH_NUMS_256, PATCH_NUMS_512
from generative.core.errors import UserError
from pipelines.var import VARPipeline

# Published file: depth, scales, shared adaptive norms, parameters in millions (README of the official repository).
PUBLISHED = {
    "var_d16.pth": (16, PATCH_NUMS_256, False, 310),
    "var_d20.pth": (20, PATCH_NUMS_256, False, 600),
    "var_d24.pth": (24, PATCH_NUMS_256, False, 1000),
    "var_d30.pth": (30, PATCH_NUMS_256, False, 2000),
    "var_d36.pth": (36, PATCH_NUMS_512, True, 2300),
}
VAE = {"vocab_size": 9, "z_channels": 4, "ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 2}
VAE["v_patch_nums"] = [1, 2]
VAR = {"num_classes": 3, "depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2]}


def official_shapes(
    depth: int, patch_nums: tuple[int, ...], shared: bool, width: int, heads: int, classes: int, codes: int, channels: int,
    ratio: int = 4, l2: bool = True,
) -> Iterator[tuple[str, tuple[int, ...]]]:  # fmt: skip
    """Keys and shapes of the official VAR's state dict."""
    tokens = sum(side * side for side in patch_nums)
    yield from {"pos_start": (1, patch_nums[0] ** 2, width), "pos_1LC": (1, tokens, width), "lvl_1L": (1, tokens)}.items()
    yield "attn_bias_for_masking", (1, 1, tokens, tokens)
    yield from {"word_embed.weight": (width, channels), "word_embed.bias": (width,)}.items()
    yield from {"class_emb.weight": (classes + 1, width), "lvl_embed.weight": (len(patch_nums), width)}.items()
    if shared:
        yield from {"shared_ada_lin.1.weight": (6 * width, width), "shared_ada_lin.1.bias": (6 * width,)}.items()
    for index in range(depth):
        prefix = f"blocks.{index}."
        if shared:
            yield prefix + "ada_gss", (1, 1, 6, width)
        else:
            yield from {prefix + "ada_lin.1.weight": (6 * width, width), prefix + "ada_lin.1.bias": (6 * width,)}.items()
        if l2:
            yield prefix + "attn.scale_mul_1H11", (1, heads, 1, 1)
        yield prefix + "attn.mat_qkv.weight", (3 * width, width)
        for name in ("q_bias", "v_bias", "zero_k_bias", "proj.bias"):
            yield prefix + "attn." + name, (width,)
        yield prefix + "attn.proj.weight", (width, width)
        yield from {prefix + "ffn.fc1.weight": (ratio * width, width), prefix + "ffn.fc1.bias": (ratio * width,)}.items()
        yield from {prefix + "ffn.fc2.weight": (width, ratio * width), prefix + "ffn.fc2.bias": (width,)}.items()
    yield from {"head_nm.ada_lin.1.weight": (2 * width, width), "head_nm.ada_lin.1.bias": (2 * width,)}.items()
    yield from {"head.weight": (codes, width), "head.bias": (codes,)}.items()


def small_state(**changes: Any) -> dict[str, Tensor]:
    """An official state of the small options, with its constants."""
    torch.manual_seed(0)
    sizes = {"depth": 2, "patch_nums": (1, 2), "shared": False, "width": 16, "heads": 2, "classes": 3, "codes": 9, "channels": 4}
    sizes |= changes
    levels = torch.tensor([0, 1, 1, 1, 1])
    state = {name: torch.randn(shape) for name, shape in official_shapes(**sizes)}
    for name in state:
        if name.endswith("zero_k_bias"):
            state[name].zero_()
    state["lvl_1L"] = levels[None]
    state["attn_bias_for_masking"] = torch.where(levels[:, None] >= levels, 0.0, -math.inf)[None, None]
    return state


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_on_the_meta_device(name: str) -> None:
    depth, patch_nums, shared, millions = PUBLISHED[name]
    source = get_source("var")
    with torch.device("meta"):
        shapes = official_shapes(depth, patch_nums, shared, 64 * depth, depth, 1000, 4096, 32)
        state = {key: torch.empty(shape) for key, shape in shapes}
        config = source.recognise(state)
        assert config is not None
        network = source.build(config)["var"]
    converted = source.convert_state("var", state, network)
    assert {key: value.shape for key, value in converted.items()} == {k: v.shape for k, v in network.state_dict().items()}
    options = config["var"]
    assert (options["depth"], options["num_heads"], options["embed_dim"]) == (depth, depth, 64 * depth)
    assert tuple(options["patch_nums"]) == patch_nums and options["shared_aln"] == shared and options["attn_l2_norm"]
    assert options["drop_path_rate"] == pytest.approx(0.1 * depth / 24)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_options_are_read_off_a_small_state(l2: bool, shared: bool) -> None:
    source = get_source("var")
    state = small_state(l2=l2, shared=shared, ratio=2, heads=1)
    config = source.recognise({f"var/{key}": value for key, value in state.items()})
    assert config is not None
    options = config["var"]
    assert options["patch_nums"] == [1, 2] and options["mlp_ratio"] == 2 and options["num_classes"] == 3
    if not l2:
        assert options["num_heads"] is None
        with pytest.raises(UserError, match="does not tell num_heads"):
            source.build(config)
        options["num_heads"] = 1
    networks = source.build(config)
    load_official(source, networks, state)
    table = networks["var"].blocks[1].modulation_table
    assert (table is not None) == shared
    if shared:
        assert torch.equal(table, state["blocks.1.ada_gss"][0, 0])


def test_both_modules_make_a_pipeline_and_one_does_not() -> None:
    source = get_source("var")
    options = VAR | {"attn_l2_norm": True, "cond_drop_rate": 0.2, "flash_if_available": True}
    networks = source.build({"vae": dict(VAE), "var": options})
    pipeline = source.pipeline(networks, {})
    assert isinstance(pipeline, VARPipeline)
    assert pipeline.sampling_defaults == {"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96}
    with pytest.raises(UserError, match=r"vae is not among the files; give both"):
        source.pipeline({"var": networks["var"]}, {})
    assert list(source.build({"vae": dict(VAE)})) == ["vae"]


def test_the_tokenizer_beside_it_takes_its_scales() -> None:
    source = get_source("var")
    networks = source.build({"vae": dict(VAE), "var": dict(VAR)})
    assert networks["vae"].patch_nums == (1, 2) and networks["var"].config.num_codes == 9
    assert not networks["var"].config.qk_l2_norm  # the official constructor's default
    assert source.recognise({"something.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("blocks.1.attn.zero_k_bias", lambda value: value + 1),
        ("lvl_1L", lambda value: value * 0),
        ("attn_bias_for_masking", lambda value: value * 0),
    ],
)
def test_constants_must_be_what_they_are(key: str, change: Any) -> None:
    source, state = get_source("var"), small_state()
    networks = source.build({"var": VAR | {"attn_l2_norm": True, "vocab_size": 9, "z_channels": 4}})
    load_official(source, networks, state)
    with pytest.raises(UserError, match=f"{key} of the VAR checkpoint is not what"):
        load_official(source, networks, state | {key: change(state[key]).nan_to_num()})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["var"].update(no_such=1), "no_such"),
        (lambda c: c.update(extra={}), "must be given as vae and var"),
        (lambda c: c["var"].update(depth=2.5), "depth"),
        (lambda c: c["var"].update(patch_nums=[1, 0]), "patch_nums"),
        (lambda c: c["var"].update(patch_nums=[1, 3]), "patch_nums"),
        (lambda c: c["var"].update(attn_l2_norm="yes"), "attn_l2_norm"),
        (lambda c: c["var"].update(cond_drop_rate="x"), "cond_drop_rate"),
    ],
)
def test_wrong_options_are_refused(edit: Any, message: str) -> None:
    config = {"vae": copy.deepcopy(VAE), "var": copy.deepcopy(VAR)}
    edit(config)
    with pytest.raises(UserError, match=message):
        get_source("var").build(config)


def test_unknown_keys_are_listed() -> None:
    source = get_source("var")
    networks = source.build({"var": VAR | {"attn_l2_norm": True, "vocab_size": 9, "z_channels": 4}})
    with pytest.raises(UserError, match="no place for the official keys blocks.0.attn.rope"):
        load_official(source, networks, small_state() | {"blocks.0.attn.rope": torch.zeros(1)})
