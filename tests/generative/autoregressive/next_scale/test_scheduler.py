"""The next-scale scheduler: draws, sums of scales, given tokens, smooth mixtures, wrong input."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from generative.autoregressive.next_scale.scheduler import KnownTokens, NextScaleScheduler, check_pyramid, smooth_temperature
from generative.autoregressive.next_scale.var import VAR
from generative.core.errors import UserError
from generative.core.seeding import ImageNoise
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from generative.tokenizers.pixel import PixelTokenizer

SIZES = (1, 4, 9)


@pytest.fixture(scope="module")
def tokenizer() -> MultiScaleVQTokenizer:
    torch.manual_seed(0)
    made = MultiScaleVQTokenizer(
        image_size=6, num_codes=5, latent_channels=4, patch_nums=(1, 2, 3), ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2
    )
    torch.nn.init.normal_(made.quantizer.codebook)
    return made.eval()


def noise(count: int) -> ImageNoise:
    return ImageNoise([torch.Generator().manual_seed(seed) for seed in range(count)])


@torch.no_grad()
def test_the_map_is_that_of_the_tokens_drawn(tokenizer: MultiScaleVQTokenizer) -> None:
    scheduler, streams = NextScaleScheduler(tokenizer), noise(2)
    state = scheduler.initial_state(2)
    for scale in scheduler.set_timesteps(3, torch.device("cpu")):
        state = scheduler.step(torch.randn(2, SIZES[scale], 5), scale, state, streams)
    torch.testing.assert_close(state.memory["accumulated"], tokenizer.accumulate(state.sample)[-1])
    torch.testing.assert_close(torch.cat(state.memory["inputs"], dim=1), tokenizer.teacher_inputs(state.sample))
    torch.testing.assert_close(tokenizer.decode_latents(state.memory["accumulated"]), tokenizer.decode(state.sample))


@torch.no_grad()
def test_given_tokens_are_taken_and_the_others_drawn(tokenizer: MultiScaleVQTokenizer) -> None:
    given, is_known = torch.zeros(2, 14, dtype=torch.int64), torch.zeros(2, 14, dtype=torch.bool)
    is_known[0, :7] = True
    for more_smooth in (False, True):
        scheduler = NextScaleScheduler(tokenizer, known=KnownTokens(given, is_known), more_smooth=more_smooth)
        state, streams = scheduler.initial_state(2), noise(2)
        logits = torch.tensor([-50.0, 0.0, -50.0, -50.0, -50.0])
        for scale in range(3):
            state = scheduler.step(logits.expand(2, SIZES[scale], 5), scale, state, streams)
        assert state.sample.tolist() == [[0] * 7 + [1] * 7, [1] * 14]
        torch.testing.assert_close(state.memory["accumulated"], tokenizer.accumulate(state.sample)[-1])


@torch.no_grad()
def test_smooth_draws_are_mixtures_that_sharpen_with_the_scale(tokenizer: MultiScaleVQTokenizer) -> None:
    assert smooth_temperature(0.0) == 0.27 and smooth_temperature(0.5) == pytest.approx(0.27 * 0.525)
    assert smooth_temperature(1.0) == pytest.approx(0.0135)
    scheduler = NextScaleScheduler(tokenizer, more_smooth=True)
    spread = []
    for scale in (0, 2):
        ids, codes = scheduler.draw(torch.zeros(200, SIZES[scale], 5), scale, noise(200))
        assert codes is not None and ids.shape == (200, SIZES[scale]) and codes.shape == (200, SIZES[scale], 4)
        spread.append((codes - tokenizer.codebook[ids]).norm(dim=-1).mean().item())
        counts = ids[:, 0].bincount(minlength=5)
        assert chisquare(counts.numpy()).pvalue > 0.001  # the largest weight is a draw by itself
    assert spread[0] > 5 * spread[1] > 0
    ids, codes = scheduler.draw(torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0]).expand(50, 1, 5), 0, noise(50))
    kept, mixed = NextScaleScheduler(tokenizer, more_smooth=True, top_k=1).draw(
        torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0]).expand(50, 1, 5), 0, noise(50)
    )
    assert len(ids.unique()) > 1 and kept.unique().tolist() == [0]
    torch.testing.assert_close(mixed, tokenizer.codebook[0].expand(50, 1, 4))


@torch.no_grad()
def test_draws_follow_the_logits_and_each_image_its_own_noise(tokenizer: MultiScaleVQTokenizer) -> None:
    scheduler = NextScaleScheduler(tokenizer, temperature=0.5, top_k=3)
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0])
    ids, _ = scheduler.draw(logits.expand(400, 9, 5), 2, noise(400))
    expected = (logits[:3] / 0.5).softmax(dim=0).double()
    counts = ids.flatten().bincount(minlength=5)
    assert counts[3:].sum() == 0
    assert chisquare(counts[:3].numpy(), (3600 * expected / expected.sum()).numpy()).pvalue > 0.001
    alone, _ = scheduler.draw(logits.expand(1, 9, 5), 2, ImageNoise([torch.Generator().manual_seed(7)]))
    assert torch.equal(alone[0], ids[7])


def test_wrong_input_is_refused(tokenizer: MultiScaleVQTokenizer) -> None:
    with pytest.raises(UserError, match="num_inference_steps must be 3, one for each scale, got 4"):
        NextScaleScheduler(tokenizer).set_timesteps(4, torch.device("cpu"))
    with pytest.raises(UserError, match="top_k must be at least 1"):
        NextScaleScheduler(tokenizer, top_k=0)
    sizes = {"num_codes": 5, "latent_channels": 4, "patch_nums": (1, 2, 3)}
    for name, value, message in (
        ("num_codes", 6, "num_codes=6 but the tokenizer has 5"),
        ("latent_channels", 3, "latent_channels=3 but the tokenizer has 4"),
        ("patch_nums", (1, 3), r"patch_nums=\(1, 3\) but the tokenizer has \(1, 2, 3\)"),
    ):
        network = VAR(num_classes=2, hidden_size=8, depth=1, num_heads=1, **{**sizes, name: value})
        with pytest.raises(UserError, match=message):
            check_pyramid(network, tokenizer)
    with pytest.raises(UserError, match="needs a multi-scale tokenizer"):
        check_pyramid(network, PixelTokenizer(4, 5))
