"""The autoregressive pipeline: noise per image, cache under guidance schedules, saving, output types, wrong input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contract import LABELS, GenerationContract, draw, quiet
from scipy.stats import chisquare
from torch import Tensor

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.token_sampling import RasterScheduler
from generative.core.errors import UserError
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.vq import VQTokenizer
from pipelines import branches
from pipelines.autoregressive import AutoregressiveImagePipeline, decode_resized

OPTIONS: list[dict[str, object]] = [
    {},
    {"guidance_scale": 2.5},
    {"guidance_scale": 2.5, "guidance_schedule": "linear"},
    {"guidance_scale": 2.5, "guidance_interval": (0.3, 0.8)},
    {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "guidance_scale": 0.0},
    {"guidance_scale": 2.5, "guidance_schedule": "power_cosine", "guidance_exponent": 2.0},
]


def make_pipeline(image_size: int = 3, num_levels: int = 5, channels: int = 1) -> AutoregressiveImagePipeline:
    torch.manual_seed(0)
    tokenizer = PixelTokenizer(image_size, num_levels, channels)
    transformer = ImageTransformer(
        tokenizer.num_codes, 3, tokenizer.grid_size, hidden_size=32, depth=2, num_heads=4, mlp_multiple_of=8
    )
    torch.nn.init.normal_(transformer.head.weight, std=0.2)  # it starts at zero: a uniform prediction
    torch.nn.init.normal_(transformer.class_embedding.weight, std=0.5)
    pipeline = AutoregressiveImagePipeline(transformer.eval(), tokenizer)
    return quiet(pipeline)


@pytest.fixture
def pipeline() -> AutoregressiveImagePipeline:
    return make_pipeline()


class TestAutoregressiveImagePipeline(GenerationContract):
    pipeline_class = AutoregressiveImagePipeline
    options = OPTIONS
    refused = (
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be"),
        ({"guidance_schedule": "quadratic"}, "guidance_schedule must be"),
        ({"output_size": 0}, "output_size must be"),
    )

    def make(self) -> AutoregressiveImagePipeline:
        return make_pipeline()


def test_three_channels_are_saved_too(tmp_path: Path) -> None:
    pipeline = make_pipeline(channels=3)
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(AutoregressiveImagePipeline.from_pretrained(tmp_path))
    assert torch.equal(draw(loaded, guidance_scale=2.0), draw(pipeline, guidance_scale=2.0))


SCALES: dict[str, float | Callable[[int], float]] = {
    "none": 1.0,
    "constant": 2.0,
    "linear": step_guidance(3.0, 9, "linear"),
    "late": lambda i: 2.0 if i >= 4 else 1.0,
    "blinking": lambda i: 2.0 if i in (2, 5, 6) else 1.0,
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@torch.no_grad()
def test_the_cache_is_right_whatever_the_guidance_schedule(
    pipeline: AutoregressiveImagePipeline, scale: float | Callable[[int], float]
) -> None:
    labels = torch.tensor(LABELS)
    largest_error = 0.0

    def without_cache(state: SampleState, position: int, branch_labels: Tensor) -> Tensor:
        return torch.stack([pipeline.transformer(state.sample, row)[:, position] for row in branch_labels])

    def both(state: SampleState, position: int, branch_labels: Tensor) -> Tensor:
        nonlocal largest_error
        cached = pipeline.predict(state, position, branch_labels)
        largest_error = max(largest_error, (cached - without_cache(state, position, branch_labels)).abs().max().item())
        return cached

    noise = pipeline.image_noise(torch.Generator().manual_seed(0), 4)
    state = pipeline.prepare_state(labels, noise)
    state = sample_loop(classifier_free_guidance(both, labels, 3, scale), RasterScheduler(9), state, 9, noise)
    assert largest_error < 1e-5
    assert state.memory["cache"].batch_size == (4 if scale == 1.0 else 8)


def test_samples_follow_the_network() -> None:
    pipeline = make_pipeline(image_size=1, num_levels=5)  # one token, so that its distribution is known
    with torch.no_grad():
        logits = pipeline.transformer(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([1]))[0, 0]
        null = pipeline.transformer(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([3]))[0, 0]
    for scale, expected in ((1.0, logits.softmax(0)), (2.0, (null + 2 * (logits - null)).softmax(0))):
        images = pipeline([1] * 4000, guidance_scale=scale, generator=torch.Generator().manual_seed(0), output_type="pt").images
        counts = (images[:, 0, 0, 0] * 4).round().long().bincount(minlength=5)
        weights = expected.double()
        assert chisquare(counts.numpy(), (4000 * weights / weights.sum()).numpy()).pvalue > 0.01


def test_a_component_is_found_by_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pipeline().save_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "generative.tokenizers.pixel")  # as in a process that only samples
    assert AutoregressiveImagePipeline.from_pretrained(tmp_path).tokenizer.num_codes == 5


def test_networks_that_do_not_fit_are_refused(pipeline: AutoregressiveImagePipeline) -> None:
    with pytest.raises(UserError, match="num_codes=5 but the tokenizer has 17 codes"):
        AutoregressiveImagePipeline(pipeline.transformer, PixelTokenizer(3, 17))


def test_image_noise_is_one_number_per_token(pipeline: AutoregressiveImagePipeline) -> None:
    generators = [torch.Generator().manual_seed(0)]
    pipeline([0], generator=generators, output_type="pt")
    left = torch.rand(1, generator=generators[0])
    assert left == ImageNoise([torch.Generator().manual_seed(0)]).rand(10)[0, 9]


def test_images_are_resized_bicubically(pipeline: AutoregressiveImagePipeline) -> None:
    everything = [0, 1, 2, 3]
    plain, resized = draw(pipeline, everything), draw(pipeline, everything, output_size=5)
    assert resized.shape == (4, 3, 5, 5) and pipeline.image_size == 3
    expected = torch.nn.functional.interpolate(2 * plain - 1, size=(5, 5), mode="bicubic")
    torch.testing.assert_close(resized, (expected / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(draw(pipeline, everything, output_size=3), plain, rtol=0, atol=0)


def test_a_vq_tokenizer_is_resized_before_it_is_clamped() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        image_size=8, num_codes=6, code_dim=4, ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, norm_groups=2
    )
    tokenizer.eval().decoder.get_parameter("conv_out.bias").data.add_(3.0)  # far outside [-1, 1]
    tokens = torch.arange(16)[None] % 6
    raw = tokenizer.reconstruct(tokenizer.ids_to_latents(tokens, (4, 4)))
    expected = torch.nn.functional.interpolate(raw, size=(4, 4), mode="bicubic")
    torch.testing.assert_close(decode_resized(tokenizer, tokens, 4), expected)
    assert expected.max() > 1 and decode_resized(tokenizer, tokens, None).max() <= 1


def test_guidance_needs_a_null_class() -> None:
    tokenizer = PixelTokenizer(2, 3)
    transformer = ImageTransformer(3, 3, (2, 2), hidden_size=16, depth=1, num_heads=2, null_class=False)
    pipeline = AutoregressiveImagePipeline(transformer.eval(), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0], output_type="pt").images.shape == (1, 3, 2, 2)
    with pytest.raises(UserError, match="without a null class"):
        pipeline([0], guidance_scale=2.0)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_grown_cache_is_that_of_full_length(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    pipeline = make_pipeline(image_size=3)
    expected = draw(pipeline, [0, 1, 2, 3], guidance_scale=scale)
    for step in (1, 4):
        monkeypatch.setattr(branches, "CACHE_STEP", step)
        torch.testing.assert_close(draw(pipeline, [0, 1, 2, 3], guidance_scale=scale), expected, rtol=0, atol=0)


def test_sampling_under_autocast_leaves_the_weights(pipeline: AutoregressiveImagePipeline) -> None:
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        together = draw(pipeline, [0, 1, 2, 3], guidance_scale=2.0)
        torch.testing.assert_close(draw(pipeline, [2], guidance_scale=2.0)[0], together[2], rtol=0, atol=0)
    assert together.isfinite().all()
    for name, value in pipeline.transformer.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


@pytest.mark.slow
def test_compiled_decoding_gives_the_same_images(pipeline: AutoregressiveImagePipeline) -> None:
    options = {"guidance_scale": 2.5, "guidance_interval": (0.3, 0.8)}
    expected = draw(pipeline, [0, 1, 2, 3], **options)
    pipeline.compile_decoding()
    torch.testing.assert_close(draw(pipeline, [0, 1, 2, 3], **options), expected, rtol=0, atol=0)
