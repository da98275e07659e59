"""The VAR pipeline: noise per image, cache under guidance schedules, editing, saving, wrong input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract import LABELS, GenerationContract, draw, quiet
from torch import Tensor

from generative.autoregressive.next_scale.scheduler import NextScaleScheduler
from generative.autoregressive.next_scale.var import VAR
from generative.core.errors import UserError
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from pipelines.var import VARPipeline

OPTIONS: list[dict[str, object]] = [
    {},
    {"guidance_scale": 2.5},
    {"guidance_scale": 2.5, "guidance_schedule": "constant"},
    {"guidance_scale": 2.5, "guidance_schedule": "cosine", "guidance_interval": (0.2, 0.5)},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "guidance_scale": 0.0},
    {"more_smooth": True, "guidance_scale": 2.5},
]


def make_pipeline() -> VARPipeline:
    torch.manual_seed(0)
    tokenizer = MultiScaleVQTokenizer(
        image_size=16, num_codes=9, latent_channels=4, patch_nums=(1, 2, 4), ch=4, ch_mult=(1, 2, 2), num_res_blocks=1,
        norm_groups=2,
    )  # fmt: skip
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    transformer = VAR(
        num_codes=9, num_classes=3, latent_channels=4, patch_nums=(1, 2, 4), hidden_size=16, depth=2, num_heads=2,
        head_init=1.0, adaln_gain_init=1.0,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.class_embedding.weight)
    torch.nn.init.normal_(transformer.head.weight, std=0.3)
    pipeline = VARPipeline(transformer.eval(), tokenizer.eval())
    return quiet(pipeline)


@pytest.fixture(scope="module")
def pipeline() -> VARPipeline:
    return make_pipeline()


class TestVARPipeline(GenerationContract):
    pipeline_class = VARPipeline
    options = OPTIONS
    tolerance = 1e-4
    refused = (
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be"),
        ({"guidance_schedule": "quadratic"}, "guidance_schedule must be"),
    )

    def make(self) -> VARPipeline:
        return make_pipeline()


SCALES: dict[str, float | Callable[[int], float]] = {
    "none": 1.0,
    "constant": 2.0,
    "linear": step_guidance(3.0, 3, "linear"),
    "late": lambda k: 2.0 if k == 2 else 1.0,
    "early": lambda k: 2.0 if k == 0 else 1.0,
    "ends": lambda k: 1.0 if k == 1 else 2.0,
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("is_told", [False, True])
@torch.no_grad()
def test_the_cache_is_right_whatever_the_guidance_schedule(
    pipeline: VARPipeline, scale: float | Callable[[int], float], is_told: bool
) -> None:
    labels, offsets = torch.tensor(LABELS), pipeline.transformer.offsets
    calls: list[int] = []

    def without_cache(state: SampleState, scale_index: int, branch_labels: Tensor) -> Tensor:
        inputs = torch.cat([torch.zeros(4, 0, 4), *state.memory["inputs"]], dim=1)
        padded = torch.cat([inputs, torch.zeros(4, 20 - inputs.shape[1], 4)], dim=1)  # what is to come is not seen
        places = slice(offsets[scale_index], offsets[scale_index + 1])
        return torch.stack([pipeline.transformer(padded, row)[:, places] for row in branch_labels])

    def both(state: SampleState, scale_index: int, branch_labels: Tensor) -> Tensor:
        cached = pipeline.predict(state, scale_index, branch_labels)
        torch.testing.assert_close(cached, without_cache(state, scale_index, branch_labels), rtol=1e-4, atol=1e-5)
        calls.append(len(branch_labels))
        return cached

    noise = pipeline.image_noise(torch.Generator().manual_seed(0), 4)
    state = pipeline.prepare_state(labels, noise)
    state.memory["is_guided"] = is_told and scale != 1.0
    predict = classifier_free_guidance(both, labels, 3, scale)
    state = sample_loop(predict, NextScaleScheduler(pipeline.tokenizer), state, 3, noise)
    assert len(calls) == 3 and state.memory["cache"].batch_size == (4 if scale == 1.0 else 8)


@torch.no_grad()
def test_a_ramp_costs_no_pass_of_its_own_for_the_first_scale(pipeline: VARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, int]] = []
    extend = pipeline.transformer.extend

    def counting(inputs: Tensor | None, first: int, last: int, cache: object, labels: Tensor, *rest: object) -> Tensor:
        rows.append((last - first, len(labels)))
        return extend(inputs, first, last, cache, labels, *rest)

    monkeypatch.setattr(pipeline.transformer, "extend", counting)
    draw(pipeline, [0, 1], guidance_scale=2.0)
    assert rows == [(1, 4), (1, 4), (1, 4)]
    rows.clear()
    draw(pipeline, [0, 1])
    assert rows == [(1, 2), (1, 2), (1, 2)]


def make_images() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(3, 3, 16, 16) * 2 - 1


def test_editing_keeps_the_tokens_outside_of_the_mask(pipeline: VARPipeline) -> None:
    images = make_images()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 8:16] = True
    known = pipeline.known_tokens(images, mask)
    kept_last = torch.ones(4, 4, dtype=torch.bool)
    kept_last[1:3, 2:4] = False
    assert known.is_known.shape == (3, 21) and bool(known.is_known[:, 0].all())  # the first scale is the image's own
    assert torch.equal(known.is_known[0, 5:].view(4, 4), kept_last)
    # The mask of the last scale, resized: 2 of 4 tokens' areas are half masked, which is not more than half kept.
    assert known.is_known[0, 1:5].tolist() == [True, False, True, False]
    assert torch.equal(known.tokens, pipeline.tokenizer.encode(images))
    one_each = pipeline.known_tokens(images, mask.expand(3, 16, 16))
    assert torch.equal(one_each.is_known, known.is_known)


def test_nothing_masked_gives_the_reconstruction_and_everything_masked_gives_a_sample(pipeline: VARPipeline) -> None:
    images, labels = make_images(), [0, 1, 2]
    nothing = torch.zeros(16, 16, dtype=torch.bool)
    edited = pipeline.edit(images, nothing, labels, output_type="pt").images
    expected = pipeline.tokenizer.decode(pipeline.tokenizer.encode(images)) / 2 + 0.5
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-5)
    seeded = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    runs = [pipeline.edit(images, ~nothing, labels, generator=each, output_type="pt").images for each in seeded]
    assert (runs[0] - runs[1]).abs().max() > 1e-3 and (runs[0] - expected).abs().max() > 1e-3


def test_editing_depends_on_class_and_noise_and_not_on_the_batch(pipeline: VARPipeline) -> None:
    images = make_images()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 8:] = True

    def edit(order: list[int], labels: list[int] | None, scale: float = 2.0) -> Tensor:
        generators = [torch.Generator().manual_seed(10 + index) for index in order]
        options = {"generator": generators, "output_type": "pt", "guidance_scale": scale}
        return pipeline.edit(images[order], mask, labels, **options).images

    together = edit([0, 1, 2], [0, 1, 2])
    torch.testing.assert_close(edit([2, 0], [2, 0]), together[[2, 0]], rtol=0, atol=1e-4)
    assert (edit([0, 1, 2], [1, 1, 1]) - together).abs().max() > 1e-3
    null = edit([0, 1, 2], None)
    assert torch.equal(null, edit([0, 1, 2], None, 7.0))  # without a class there is nothing to guide
    assert (null - together).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.zeros(16, 16)}, "mask must be bool of shape"),
        ({"mask": torch.zeros(2, 16, 16, dtype=torch.bool)}, "mask must be bool of shape"),
        ({"mask": torch.zeros(8, 8, dtype=torch.bool)}, "mask must be bool of shape"),
        ({"images": torch.zeros(3, 3, 8, 8)}, "takes images"),
        ({"class_labels": [0, 1]}, "2 class labels for 3 images"),
        ({"class_labels": 5}, "class label 5 is outside"),
    ],
)
def test_wrong_edits_are_refused(pipeline: VARPipeline, arguments: dict[str, object], message: str) -> None:
    given = {"images": make_images(), "mask": torch.zeros(16, 16, dtype=torch.bool), **arguments}
    with pytest.raises(UserError, match=message):
        pipeline.edit(**given)


def test_networks_that_do_not_fit_are_refused(pipeline: VARPipeline) -> None:
    other = VAR(num_codes=8, num_classes=3, latent_channels=4, patch_nums=(1, 2, 4), hidden_size=8, depth=1, num_heads=1)
    with pytest.raises(UserError, match="num_codes=8 but the tokenizer has 9"):
        VARPipeline(other, pipeline.tokenizer)
