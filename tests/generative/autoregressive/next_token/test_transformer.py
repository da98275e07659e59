"""The decoder-only transformer: causality, cache, initialisation, positions, saving."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.core.errors import UserError
from generative.layers.rope import AxialRotaryEmbedding, apply_rotary
from generative.layers.swiglu import SwiGLU, swiglu_hidden_size

NUM_CODES, NUM_CLASSES, GRID = 7, 3, (3, 4)
LENGTH = GRID[0] * GRID[1]
VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "llamagen": {"class_rope": "zero"},
    "grouped": {"num_kv_heads": 1, "qk_norm": True},
    "pairs": {"num_kv_heads": 2, "class_rope": "zero"},
}


def make_transformer(**options: object) -> ImageTransformer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_multiple_of": 8}
    transformer = ImageTransformer(NUM_CODES, NUM_CLASSES, GRID, **(sizes | options))
    torch.nn.init.normal_(transformer.head.weight)  # it starts at zero, which would hide everything below it
    return transformer.eval()


def make_inputs(batch_size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(NUM_CODES, (batch_size, LENGTH), generator=generator)
    return tokens, torch.arange(batch_size) % (NUM_CLASSES + 1)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_token_moves_only_later_predictions(options: dict[str, object]) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs()
    before = transformer(tokens, labels)
    for j in (0, 4, LENGTH - 2):
        changed = tokens.clone()
        changed[:, j] = (changed[:, j] + 1) % NUM_CODES
        after = transformer(changed, labels)
        torch.testing.assert_close(after[:, : j + 1], before[:, : j + 1], rtol=0, atol=0)
        moved = (after - before).abs().amax(dim=(0, 2))
        assert (moved[j + 1 :] > 1e-6).all()  # the very next one and every later one


@torch.no_grad()
def test_the_class_moves_every_prediction_and_none_is_the_null_label() -> None:
    transformer = make_transformer()
    tokens, _ = make_inputs()
    first, second = (transformer(tokens, torch.full((5,), label)) for label in (0, 1))
    assert ((first - second).abs().amax(dim=(0, 2)) > 1e-6).all()
    null = transformer(tokens, torch.full((5,), NUM_CLASSES))
    torch.testing.assert_close(transformer(tokens), null, rtol=0, atol=0)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_cache_gives_the_full_forward(options: dict[str, object]) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    cache = transformer.make_cache(5)
    token = torch.zeros(5, dtype=torch.int64)
    for position in range(LENGTH):
        logits = transformer.decode_step(token, position, cache, labels)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-5)
        token = tokens[:, position]


@torch.no_grad()
def test_a_chunk_extends_the_cache_as_single_steps_do() -> None:
    transformer = make_transformer()
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    before = tokens.roll(1, dims=1)
    cache = transformer.make_cache(5)
    for start, stop in ((0, 5), (5, 6), (6, LENGTH)):
        logits = transformer.extend(before[:, start:stop], torch.arange(start, stop), cache, labels)
        torch.testing.assert_close(logits, expected[:, start:stop], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_position_may_be_a_number_or_a_tensor(options: dict[str, object]) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs()
    numbers, tensors = transformer.make_cache(5), transformer.make_cache(5)
    token = torch.zeros(5, dtype=torch.int64)
    for position in range(LENGTH):
        fast = transformer.decode_step(token, position, numbers, labels)
        static = transformer.decode_step(token, torch.tensor([position]), tensors, labels)
        torch.testing.assert_close(fast, static, rtol=0, atol=1e-5)
        token = tokens[:, position]
    torch.testing.assert_close(numbers.keys, tensors.keys, rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_positions_extend_the_filled_part() -> None:
    transformer = make_transformer(num_kv_heads=2)
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    before = tokens.roll(1, dims=1)
    cache = transformer.make_cache(5)
    for start, stop in ((0, 1), (1, 6), (6, 7), (7, LENGTH)):
        logits = transformer.extend_from(start, before[:, start:stop], cache, labels)
        torch.testing.assert_close(logits, expected[:, start:stop], rtol=0, atol=1e-5)


@torch.no_grad()
def test_slots_after_the_position_are_not_read() -> None:
    transformer = make_transformer()
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    cache = transformer.make_cache(5)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    for position in range(3):
        token = tokens[:, max(position - 1, 0)]
        logits = transformer.decode_step(token, position, cache, labels)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_half_precision_is_near_float32(options: dict[str, object], autocast: bool) -> None:
    transformer = make_transformer(**options)
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    transformer = transformer if autocast else transformer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = transformer(tokens, labels)
        cache = transformer.make_cache(5)
        assert cache.keys.dtype == torch.bfloat16
        token = torch.zeros(5, dtype=torch.int64)
        steps = []
        for position in range(LENGTH):
            steps.append(transformer.decode_step(token, position, cache, labels))
            token = tokens[:, position]
    scale = expected.abs().max()
    assert whole.dtype == torch.bfloat16
    assert (whole - expected).abs().max() < 0.05 * scale
    assert (torch.stack(steps, dim=1) - expected).abs().max() < 0.05 * scale


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_step_is_compiled_once_for_all_positions() -> None:
    transformer = make_transformer(class_rope="zero")
    tokens, labels = make_inputs()
    expected = transformer(tokens, labels)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(transformer.decode_step, fullgraph=True, backend="eager")  # what is compiled counts, not how
    cache = transformer.make_cache(5)
    token = torch.zeros(5, dtype=torch.int64)
    for position in range(LENGTH):
        logits = step(token, torch.tensor([position]), cache, labels)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-4)
        token = tokens[:, position].contiguous()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_rows_of_a_cache_are_written_through() -> None:
    transformer = make_transformer()
    cache = transformer.make_cache(4)
    token = torch.zeros(2, dtype=torch.int64)
    transformer.decode_step(token, 0, cache.rows(2, 4), torch.tensor([0, 1]))
    assert cache.keys[:, :2].abs().sum() == 0 and cache.keys[:, 2:, :, 0].abs().sum() > 0
    assert cache.keys[:, :, :, 1:].abs().sum() == 0


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    transformer = ImageTransformer(NUM_CODES, NUM_CLASSES, GRID, hidden_size=32, depth=2, num_heads=4)
    tokens, labels = make_inputs()
    loss = F.cross_entropy(transformer(tokens, labels).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(NUM_CODES), abs=1e-6)


def test_residual_layers_start_smaller_with_depth() -> None:
    transformer = ImageTransformer(NUM_CODES, NUM_CLASSES, GRID, hidden_size=128, depth=8, num_heads=4)
    block = transformer.blocks[3]
    inner = block.attention.qkv_proj.weight.std().item()
    assert inner == pytest.approx(1 / math.sqrt(3 * 128), rel=0.05)
    assert block.attention.out_proj.weight.std().item() == pytest.approx(inner / 4, rel=0.05)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(inner / 4, rel=0.05)


def test_it_has_no_biases_and_does_not_tie_its_head() -> None:
    transformer = make_transformer(qk_norm=True)
    assert not any(name.endswith("bias") for name, _ in transformer.named_parameters())
    assert transformer.head.weight is not transformer.token_embedding.weight


def test_gradient_checkpointing_changes_nothing() -> None:
    tokens, labels = make_inputs()
    gradients = []
    for checkpointing in (False, True):
        transformer = make_transformer()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        F.cross_entropy(transformer(tokens, labels).flatten(0, 1), tokens.flatten()).backward()
        gradients.append([p.grad for p in transformer.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", ["embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout", "drop_path"])
@torch.no_grad()
def test_dropout_acts_in_training_only(name: str) -> None:
    transformer = make_transformer(**{name: 0.5})
    tokens, labels = make_inputs()
    torch.testing.assert_close(transformer(tokens, labels), make_transformer()(tokens, labels), rtol=0, atol=0)
    transformer.train()
    assert not torch.allclose(transformer(tokens, labels), transformer(tokens, labels))


@torch.no_grad()
def test_saving_and_loading_is_bit_equal(tmp_path: Path) -> None:
    transformer = make_transformer(num_kv_heads=2, qk_norm=True, class_rope="zero", rope_base=100.0)
    tokens, labels = make_inputs()
    transformer.save_pretrained(tmp_path)
    loaded = ImageTransformer.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(loaded(tokens, labels), transformer(tokens, labels), rtol=0, atol=0)


@torch.no_grad()
def test_a_bfloat16_network_keeps_the_precision_of_its_positions() -> None:
    rotary = AxialRotaryEmbedding(40, 40, 16)
    exact = rotary(torch.arange(1601))
    for half, full in zip(rotary.to(torch.bfloat16)(torch.arange(1601)), exact, strict=True):
        torch.testing.assert_close(half, full, rtol=0, atol=0)


def test_rotary_by_hand() -> None:
    rotary = AxialRotaryEmbedding(2, 3, head_size=4, base=10.0)
    cos, sin = rotary(torch.arange(7))
    # Slot 6 is token 5: row 1, column 2. One pair per axis, frequency base ** 0 = 1.
    torch.testing.assert_close(cos[6], torch.tensor([math.cos(1), math.cos(2)]))
    torch.testing.assert_close(sin[6], torch.tensor([math.sin(1), math.sin(2)]))
    torch.testing.assert_close((cos[0], sin[0]), (torch.ones(2), torch.zeros(2)))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 1, 7, 4)
    expected = torch.tensor([math.cos(1), math.sin(1), -math.sin(2), math.cos(2)])
    torch.testing.assert_close(apply_rotary(x, cos, sin)[0, 0, 6], expected)
    cos, sin = AxialRotaryEmbedding(2, 3, head_size=4, zero_class_slot=True)(torch.arange(7))
    assert apply_rotary(x, cos, sin)[0, 0, 0].abs().sum() == 0


def test_rotary_second_frequency() -> None:
    cos, _ = AxialRotaryEmbedding(1, 4, head_size=8, base=10000.0)(torch.tensor([4]))
    # Two pairs per axis: frequencies 1 and 10000 ** (-2 / 4) = 0.01; token 3 is at row 0, column 3.
    torch.testing.assert_close(cos[0], torch.tensor([1.0, 1.0, math.cos(3), math.cos(0.03)]))


def test_rotary_scores_depend_on_offsets_only() -> None:
    rotary = AxialRotaryEmbedding(4, 4, head_size=8)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(query_slot: int, key_slot: int) -> float:
        a = apply_rotary(q, *rotary(torch.tensor([query_slot])))
        return (a * apply_rotary(k, *rotary(torch.tensor([key_slot])))).sum().item()

    assert score(11, 5) == pytest.approx(score(16, 10), abs=1e-5)  # one row and two columns apart, twice
    assert score(11, 5) != pytest.approx(score(11, 6), abs=1e-3)


def test_swiglu_by_hand() -> None:
    layer = SwiGLU(1, 1)
    layer.gate_up_proj.weight.data = torch.tensor([[2.0], [3.0]])
    layer.down_proj.weight.data = torch.tensor([[5.0]])
    expected = 5 * (2 / (1 + math.exp(-2))) * 3
    assert layer(torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-6)
    assert swiglu_hidden_size(768, 256) == 2048  # LlamaGen-B
    assert swiglu_hidden_size(1024, 256) == 2816  # LlamaGen-L
    assert swiglu_hidden_size(1024, 256, 1.3) == 3584  # int(1.3 * 2730) = 3549, rounded up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30"),
        ({"hidden_size": 24, "num_heads": 4}, "multiple of 4"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"class_rope": "none"}, "class_rope"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"mlp_dropout": -0.1}, "mlp_dropout must be in"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_transformer(**options)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 12 positions, got 13"):
        make_transformer()(torch.zeros(1, 13, dtype=torch.int64))


def test_one_range_for_all_initial_weights() -> None:
    transformer = ImageTransformer(64, 50, GRID, hidden_size=128, depth=2, num_heads=4, initializer_range=0.02)
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and name != "head.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.head.weight.abs().sum() == 0


def test_a_transformer_without_a_null_class_asks_for_labels() -> None:
    transformer = make_transformer(null_class=False)
    assert len(transformer.class_embedding.weight) == NUM_CLASSES
    tokens, _ = make_inputs()
    with pytest.raises(UserError, match="null_class"):
        transformer(tokens)


@torch.no_grad()
def test_old_configs_still_load(tmp_path: Path) -> None:
    transformer = make_transformer()
    transformer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("mlp_dropout", "drop_path", "mlp_multiplier", "initializer_range", "null_class"):
        del config[name]  # as it was saved before these were options
    path.write_text(json.dumps(config))
    tokens, labels = make_inputs()
    loaded = ImageTransformer.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(loaded(tokens, labels), transformer(tokens, labels), rtol=0, atol=0)


def test_rotation_of_pairs_is_the_same_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cos, sin = AxialRotaryEmbedding(2, 3, head_size=8)(torch.arange(7))
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    complex_product = apply_rotary(x, cos, sin)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(apply_rotary(x, cos, sin), complex_product)
