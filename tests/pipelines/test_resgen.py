"""The ResGen pipeline: noise per image, guidance, saving, wrong input."""

from __future__ import annotations

import pytest
import torch
from contract import GenerationContract, quiet

from generative.autoregressive.masked.resgen import ResGenTransformer
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.tokenizers.rvq import RVQTokenizer
from pipelines.resgen import ResGenPipeline

OPTIONS: list[dict[str, object]] = [
    {},
    {"num_inference_steps": 7},
    {"guidance_scale": 8.0},
    {"guidance_scale": 8.0, "guidance_schedule": "linear"},
    {"guidance_scale": 8.0, "guidance_interval": (0.0, 0.5)},
    {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "choice_temperature": 5.0},
]


def make_pipeline() -> ResGenPipeline:
    torch.manual_seed(0)
    tokenizer = RVQTokenizer(
        image_size=4, depth=3, codebook_size=8, z_channels=4, ch=8, ch_mult=(1, 1), num_res_blocks=1, norm_groups=4
    )
    transformer = ResGenTransformer(3, 4, 3, (2, 2), hidden_size=16, depth=1, num_heads=2, num_mixtures=5, mixture_rank=2)
    torch.nn.init.normal_(transformer.class_embedding.weight, std=3.0)
    torch.nn.init.normal_(transformer.head.weight, std=0.6)
    transformer.measure_remainder_scales(tokenizer.codebooks_tensor.transpose(0, 1)[None])
    pipeline = ResGenPipeline(transformer.eval(), tokenizer.eval())
    return quiet(pipeline)


@pytest.fixture
def pipeline() -> ResGenPipeline:
    return make_pipeline()


class TestResGenPipeline(GenerationContract):
    pipeline_class = ResGenPipeline
    options = OPTIONS
    always = {"num_inference_steps": 4}
    tolerance = 1e-5
    refused = (
        ({"num_inference_steps": 0}, "num_inference_steps must be in 1..12, .* got 0"),
        ({"num_inference_steps": 13}, "num_inference_steps must be in 1..12, .* got 13"),
        ({"choice_temperature": -1.0}, "choice_temperature must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_schedule": "quadratic"}, "guidance_schedule must be"),
    )

    def make(self) -> ResGenPipeline:
        return make_pipeline()


@torch.no_grad()
def test_the_network_sees_known_codes_only(pipeline: ResGenPipeline) -> None:
    ids = torch.randint(8, (1, 4, 3), generator=torch.Generator().manual_seed(0))
    memory = {"num_known": torch.tensor([[0, 1, 2, 3]]), "codebooks": pipeline.tokenizer.codebooks_tensor}
    labels = torch.tensor([[1], [3]])
    prediction = pipeline.predict(SampleState(ids, memory), 0, labels)
    assert prediction.shape == (2, 1, pipeline.transformer.head.out_features, 4)
    unknown = ids.clone()
    unknown[0, 0], unknown[0, 1, 1:], unknown[0, 2, 2] = 7, 6, 5
    torch.testing.assert_close(pipeline.predict(SampleState(unknown, memory), 0, labels), prediction, rtol=0, atol=0)
    unknown[0, 3, 2] = (ids[0, 3, 2] + 1) % 8
    assert not torch.allclose(pipeline.predict(SampleState(unknown, memory), 0, labels), prediction)


def test_networks_that_do_not_fit_are_refused(pipeline: ResGenPipeline) -> None:
    other = ResGenTransformer(2, 4, 3, (2, 2), hidden_size=16, depth=1, num_heads=2, num_mixtures=5)
    with pytest.raises(UserError, match="code_depth=2 but the tokenizer has 3 codes a vector"):
        ResGenPipeline(other, pipeline.tokenizer)
