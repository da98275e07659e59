"""The MaskGIT pipeline: noise per image, guidance, saving, wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from generative.tokenizers.pixel import PixelTokenizer
from pipelines import load_pipeline
from pipelines.maskgit import MaskGITPipeline

LABELS = [0, 2, 2, 1]
OPTIONS: list[dict[str, object]] = [
    {},
    {"num_inference_steps": 3},
    {"guidance_scale": 8.0},
    {"guidance_scale": 8.0, "guidance_schedule": "linear"},
    {"guidance_scale": 8.0, "guidance_schedule": "power_cosine", "guidance_exponent": 2.0},
    {"guidance_scale": 8.0, "guidance_interval": (0.3, 0.8)},
    {"temperature": 3.0, "top_k": 4, "top_p": 0.9, "guidance_scale": 0.0, "choice_temperature": 0.5},
]


def make_pipeline(image_size: int = 3, channels: int = 1) -> MaskGITPipeline:
    torch.manual_seed(0)
    tokenizer = PixelTokenizer(image_size, 5, channels)
    transformer = MaskGITTransformer(tokenizer.num_codes, 3, tokenizer.grid_size, hidden_size=32, depth=2, num_heads=4)
    for parameter in transformer.blocks.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.2)  # small at first: the class says next to nothing
    torch.nn.init.normal_(transformer.class_embedding.weight, std=1.0)
    torch.nn.init.normal_(transformer.token_embedding.weight, std=0.1)  # at first all predictions are even
    pipeline = MaskGITPipeline(transformer.eval(), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> MaskGITPipeline:
    return make_pipeline(image_size=4)


def draw(pipeline: MaskGITPipeline, order: list[int], **options: object) -> Tensor:
    generators = sample_generators(0, LABELS, [0, 0, 1, 0])
    picked = [generators[index] for index in order]
    return pipeline([LABELS[index] for index in order], generator=picked, output_type="pt", **options).images


@pytest.mark.parametrize("options", OPTIONS)
def test_batch_equals_singles_in_any_order(pipeline: MaskGITPipeline, options: dict[str, object]) -> None:
    together = draw(pipeline, [0, 1, 2, 3], **options)
    for index in range(4):
        torch.testing.assert_close(draw(pipeline, [index], **options)[0], together[index], rtol=0, atol=0)
    torch.testing.assert_close(draw(pipeline, [2, 0, 3, 1], **options), together[[2, 0, 3, 1]], rtol=0, atol=0)
    assert not torch.equal(together[1], together[2])  # same class, other noise


def test_options_matter(pipeline: MaskGITPipeline) -> None:
    images = [draw(pipeline, [0, 1, 2, 3], **options) for options in OPTIONS]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_samples_follow_the_network() -> None:
    pipeline = make_pipeline(image_size=1)  # one token, so that its distribution is known
    with torch.no_grad():
        masked = torch.full((1, 1), 5)
        logits, null = (pipeline.transformer(masked, torch.tensor([label]))[0, 0] for label in (1, 3))
    for scale, expected in ((1.0, logits.softmax(0)), (2.0, (null + 2 * (logits - null)).softmax(0))):
        images = pipeline(
            [1] * 4000,
            num_inference_steps=1,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        counts = (images[:, 0, 0, 0] * 4).round().long().bincount(minlength=5)
        weights = expected.double()
        assert chisquare(counts.numpy(), (4000 * weights / weights.sum()).numpy()).pvalue > 0.01


def test_saving_and_loading_is_bit_equal(tmp_path: Path) -> None:
    pipeline = make_pipeline(channels=3)
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert isinstance(loaded, MaskGITPipeline)
    loaded.set_progress_bar_config(disable=True)
    everything = [0, 1, 2, 3]
    torch.testing.assert_close(
        draw(loaded, everything, guidance_scale=2.0), draw(pipeline, everything, guidance_scale=2.0), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be in 1..16, .* got 0"),
        ({"num_inference_steps": 17}, "num_inference_steps must be in 1..16, .* got 17"),
        ({"choice_temperature": -1.0}, "choice_temperature must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be"),
        ({"guidance_schedule": "quadratic"}, "guidance_schedule must be"),
        ({"guidance_exponent": -1.0}, "guidance_exponent must be"),
    ],
)
def test_wrong_input_is_refused(pipeline: MaskGITPipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline([0], **options)


def test_networks_that_do_not_fit_are_refused(pipeline: MaskGITPipeline) -> None:
    with pytest.raises(UserError, match="num_codes=5 but the tokenizer has 17 codes"):
        MaskGITPipeline(pipeline.transformer, PixelTokenizer(4, 17))
