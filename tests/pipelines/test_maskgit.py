"""The MaskGIT pipeline: noise per image, guidance, saving, wrong input."""

from __future__ import annotations

import pytest
import torch
from contract import GenerationContract, quiet
from scipy.stats import chisquare

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.core.errors import UserError
from generative.tokenizers.pixel import PixelTokenizer
from pipelines.maskgit import MaskGITPipeline

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
    return quiet(pipeline)


class TestMaskGITPipeline(GenerationContract):
    pipeline_class = MaskGITPipeline
    options = OPTIONS
    refused = (
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
    )

    def make(self) -> MaskGITPipeline:
        return make_pipeline(image_size=4)


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


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="num_codes=5 but the tokenizer has 17 codes"):
        MaskGITPipeline(make_pipeline(image_size=4).transformer, PixelTokenizer(4, 17))
