"""VAR: causality over scales, cache, modulations, initial weights, precision, wrong sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generative.autoregressive.next_scale.var import VAR
from generative.autoregressive.next_scale.var_blocks import normalize
from generative.core.errors import UserError

PATCH_NUMS = (1, 2, 3)
VARIANTS = [{}, {"shared_adaln": True}, {"qk_l2_norm": False}, {"shared_adaln": True, "qk_l2_norm": False}]


def make_network(**options: object) -> VAR:
    torch.manual_seed(0)
    sizes = {"num_codes": 7, "num_classes": 3, "latent_channels": 5, "patch_nums": PATCH_NUMS, "hidden_size": 16, "depth": 2}
    network = VAR(**{**sizes, "num_heads": 2, "head_init": 1.0, "adaln_gain_init": 1.0, **options})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # every term counts, the biases too
    return network.eval()


def make_inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 13, 5), torch.tensor([0, 2, 1, 3])


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_a_scale_sees_smaller_and_its_own_only(options: dict[str, bool]) -> None:
    network, (inputs, labels) = make_network(**options), make_inputs()
    logits = network(inputs, labels)
    assert logits.shape == (4, 14, 7)
    later, own = inputs.clone(), inputs.clone()
    later[:, 4:] += 1.0  # scale 2
    own[:, 3] += 1.0  # last token of scale 1
    torch.testing.assert_close(network(later, labels)[:, :5], logits[:, :5], rtol=0, atol=1e-6)
    changed = (network(own, labels) - logits).abs().amax(dim=(0, 2))
    assert changed[0] < 1e-6 and (changed[1:] > 1e-4).all()  # all tokens of scale 1, the first one too, and of scale 2
    assert (network(inputs, labels.roll(1)) - logits).abs().amax(dim=(0, 2)).min() > 1e-4
    torch.testing.assert_close(network(inputs), network(inputs, torch.full((4,), 3)), rtol=0, atol=0)


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_the_cache_changes_nothing(options: dict[str, bool]) -> None:
    network, (inputs, labels) = make_network(**options), make_inputs()
    expected = network(inputs, labels)
    for cuts in ([0, 1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 3]):
        cache = network.make_cache(4)
        parts = []
        for first, last in zip(cuts, cuts[1:], strict=False):
            start, stop = max(network.offsets[first] - 1, 0), network.offsets[last] - 1
            parts.append(network.extend(inputs[:, start:stop] if stop else None, first, last, cache, labels))
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-5)
    assert cache.keys.shape == (2, 4, 2, 14, 8)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    network, (inputs, labels) = make_network(), make_inputs()
    together = network(inputs, labels)
    for index in range(4):
        torch.testing.assert_close(network(inputs[[index]], labels[[index]])[0], together[index], rtol=1e-5, atol=1e-5)


def test_normalized_queries_have_their_learned_length_and_no_more_than_100() -> None:
    vectors = torch.tensor([3.0, 4.0]).expand(1, 1, 2, 2)
    expected = torch.tensor([[1.2, 1.6], [0.6, 0.8]])[None, None]
    torch.testing.assert_close(normalize(vectors, torch.tensor([[2.0], [1.0]])), expected)
    assert not normalize(torch.zeros(1, 1, 1, 2), torch.ones(1, 1)).any()
    network, (inputs, labels) = make_network(), make_inputs()
    layer = network.blocks[0].attention
    with torch.no_grad():
        layer.log_scale.fill_(math.log(100.0))
        at_limit = network(inputs, labels)
        layer.log_scale.fill_(20.0)
        torch.testing.assert_close(network(inputs, labels), at_limit)
        layer.log_scale.fill_(math.log(50.0))
        assert (network(inputs, labels) - at_limit).abs().max() > 1e-4


def test_gradients_of_normalized_vectors() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(4, 1, dtype=torch.float64).add_(0.5).requires_grad_()
    weights = torch.randn_like(x)
    ours = torch.autograd.grad((normalize(x, scale) * weights).sum(), (x, scale))
    expected = torch.autograd.grad((torch.nn.functional.normalize(x, dim=-1) * scale * weights).sum(), (x, scale))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_initial_weights(shared_adaln: bool) -> None:
    torch.manual_seed(0)
    network = VAR(
        num_codes=50, num_classes=20, hidden_size=96, depth=4, num_heads=4, shared_adaln=shared_adaln, patch_nums=(1, 2, 4),
        adaln_gain_init=1e-3,
    )  # fmt: skip
    std = math.sqrt(1 / (3 * 96))
    block = network.blocks[2]
    for weight, expected in (
        (network.class_embedding.weight, std),
        (network.position_embedding, std),
        (block.attention.qkv.weight, std),
        (block.attention.out.weight, std / math.sqrt(8)),
        (block.mlp.fc2.weight, std / math.sqrt(8)),
        (network.head.weight, 0.02 * std),
        (network.head_modulation.weight, 0.5 * std),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.1)
    if shared_adaln:
        assert block.modulation_table[:2].std().item() == pytest.approx(1e-3 / math.sqrt(96), rel=0.2)
        assert block.modulation_table[2:].std().item() == pytest.approx(0.5 / math.sqrt(96), rel=0.2)
    else:
        assert block.modulation.weight[:192].std().item() == pytest.approx(1e-3 * std, rel=0.1)
        assert block.modulation.weight[192:].std().item() == pytest.approx(0.5 * std, rel=0.1)
        assert not block.modulation.bias.any()
    assert block.attention.log_scale.tolist() == pytest.approx([math.log(4.0)] * 4)


def test_drop_path_skips_layers_of_some_images_only_in_training() -> None:
    network, (inputs, labels) = make_network(drop_path=0.5, depth=3), make_inputs()
    assert [block.drop_path for block in network.blocks] == [0.0, 0.25, 0.5]
    with torch.no_grad():
        torch.testing.assert_close(network(inputs, labels), network(inputs, labels), rtol=0, atol=0)
        network.train()
        torch.manual_seed(0)
        gains = torch.stack([network.blocks[2].skip(torch.ones(4, 1, 2)) for _ in range(500)])  # (500, 4, 1, 2)
    assert gains.unique().tolist() == [0.0, 2.0] and gains.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(gains[..., 0], gains[..., 1])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        network, (inputs, labels) = make_network(), make_inputs()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.train()(inputs, labels).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
def test_half_precision_and_autocast_stay_close() -> None:
    network, (inputs, labels) = make_network(), make_inputs()
    expected = network(inputs, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(inputs, labels).float()
    halved = network.to(torch.bfloat16)(inputs, labels).float()
    scale = expected.abs().max()
    assert (mixed - expected).abs().max() < 0.05 * scale and (halved - expected).abs().max() < 0.1 * scale


@torch.no_grad()
def test_saving_and_loading(tmp_path: Path) -> None:
    network, (inputs, labels) = make_network(shared_adaln=True), make_inputs()
    network.save_pretrained(tmp_path)
    loaded = VAR.from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs, labels), network(inputs, labels))


def test_it_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = VAR(num_codes=4096, num_classes=1000, hidden_size=1024, depth=16, num_heads=16, drop_path=0.1)
    assert sum(p.numel() for p in network.parameters()) == 310_283_520
    assert network.blocks[-1].drop_path == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 15}, "hidden_size 15 must be a multiple of num_heads, got 2"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"patch_nums": ()}, "patch_nums must be positive integers"),
        ({"patch_nums": (1, 0)}, "patch_nums must be positive integers"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"drop_path": -0.1}, "drop_path must be in"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_network(**options)
