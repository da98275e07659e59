"""Open-MAGVIT2's pipeline: noise per image, caches under guidance of single sub-tokens, saving, wrong input."""

from __future__ import annotations

import pytest
import torch
from contract import LABELS, GenerationContract, quiet
from torch import Tensor

from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.autoregressive.sub_token.scheduler import SubTokenScheduler, sub_token_guidance
from generative.core.errors import UserError
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.tokenizers.lfq import LFQTokenizer
from pipelines.magvit2 import MAGVIT2Pipeline, equal_runs

OPTIONS: list[dict[str, object]] = [
    {},
    {"guidance_scale": (2.5, 1.5)},
    {"guidance_scale": (1.0, 3.0)},
    {"guidance_scale": (3.0, 1.0), "guidance_interval": (0.3, 0.8), "temperature": (1.1, 0.8)},
    {"temperature": 0.7, "top_k": (2, 5), "top_p": 0.9, "guidance_scale": 0.0},
]


def make_pipeline() -> MAGVIT2Pipeline:
    torch.manual_seed(0)
    tokenizer = LFQTokenizer(image_size=6, num_bits=5, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2)
    transformer = MAGVIT2Transformer(
        32,
        3,
        (2, 3),
        tokenizer.grid_size,
        hidden_size=32,
        depth=2,
        intra_depth=2,
        num_heads=4,
        mlp_multiple_of=8,
        initializer_range=0.2,
    )
    for head in transformer.heads:
        torch.nn.init.normal_(head.weight, std=0.2)
    pipeline = MAGVIT2Pipeline(transformer.eval(), tokenizer.eval())
    return quiet(pipeline)


@pytest.fixture
def pipeline() -> MAGVIT2Pipeline:
    return make_pipeline()


class TestMAGVIT2Pipeline(GenerationContract):
    pipeline_class = MAGVIT2Pipeline
    options = OPTIONS
    tolerance = 1e-5
    refused = (
        ({"temperature": (1.0, 0.0)}, "temperature must be"),
        ({"top_k": (1, 2, 3)}, "one for each of the 2 sub-tokens"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"guidance_scale": (1.0, -1.0)}, "guidance_scale must be"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be"),
    )

    def make(self) -> MAGVIT2Pipeline:
        pipeline = make_pipeline()
        defaults = {"guidance_scale": [1.9, 2.0], "temperature": [1.1, 1.0]}
        return MAGVIT2Pipeline(pipeline.transformer, pipeline.tokenizer, defaults)


@pytest.mark.parametrize("scales", [1.0, 2.0, (1.0, 2.0), (2.0, 1.0)])
@pytest.mark.parametrize("interval", [None, (0.4, 0.8)])
@torch.no_grad()
def test_the_caches_are_right_whichever_sub_token_is_guided(
    pipeline: MAGVIT2Pipeline, scales: float | tuple[float, float], interval: tuple[float, float] | None
) -> None:
    labels, transformer = torch.tensor(LABELS), pipeline.transformer
    largest_error, seen = 0.0, 0

    def both(state: SampleState, timestep: int, branch_labels: Tensor) -> Tensor:
        nonlocal largest_error, seen
        position, k = divmod(timestep, 2)
        tokens = transformer.join(state.sample)
        expected = torch.stack([transformer(tokens, row)[k][:, position] for row in branch_labels])
        cached = pipeline.predict(state, timestep, branch_labels)
        largest_error, seen = max(largest_error, (cached - expected).abs().max().item()), seen + len(branch_labels)
        return cached

    noise = pipeline.image_noise(torch.Generator().manual_seed(0), 4)
    guided = classifier_free_guidance(both, labels, 3, sub_token_guidance(2, 9, scales, "constant", interval))
    sample_loop(guided, SubTokenScheduler(9, 2), pipeline.prepare_state(labels, noise), 18, noise)
    assert largest_error < 1e-5
    assert seen == 18 if scales == 1.0 else seen > 18


def test_runs_of_equal_values() -> None:
    assert equal_runs([3, 3, 0]) == [(0, 2), (2, 3)] and equal_runs([1]) == [(0, 1)]


def test_networks_that_do_not_fit_are_refused(pipeline: MAGVIT2Pipeline) -> None:
    tokenizer = LFQTokenizer(image_size=6, num_bits=6, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2)
    with pytest.raises(UserError, match="num_codes=32 but the tokenizer has 64 codes"):
        MAGVIT2Pipeline(pipeline.transformer, tokenizer)
