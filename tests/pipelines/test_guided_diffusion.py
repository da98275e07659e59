"""The diffusion pipeline with a guide and a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import GenerationContract
from diffusers import DDPMScheduler
from test_diffusion import make_pipeline, run
from torch import nn

from generative.core.errors import UserError
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.networks.adm_classifier import ADMClassifier
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.sde import SDESampler
from pipelines.diffusion import DiffusionImagePipeline


def tiny_guide(**options: Any) -> DiT:
    """A weaker network: half as wide."""
    torch.manual_seed(1)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 8, "depth": 1, "num_heads": 2}
    guide = DiT(**(arguments | {"num_classes": 3} | options)).eval()
    for parameter in guide.parameters():
        nn.init.normal_(parameter, std=0.3)
    return guide


def tiny_classifier(**options: Any) -> ADMClassifier:
    torch.manual_seed(2)
    arguments = {"sample_size": 4, "num_classes": 3, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    blocks = {"attention_resolutions": (), "num_head_channels": 32, "pool": "adaptive"}
    classifier = ADMClassifier(**(arguments | blocks | options)).eval()
    nn.init.normal_(classifier.head.weight, std=1.0)
    return classifier


def tiny_upsampler() -> ADMUNet:
    blocks: dict[str, Any] = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    return ADMUNet(sample_size=4, num_classes=3, num_head_channels=32, low_resolution_size=2, **blocks)


def guided_pipeline(**components: Any) -> DiffusionImagePipeline:
    pipeline = make_pipeline()
    pipeline.register_modules(**({"guide": tiny_guide(), "classifier": tiny_classifier()} | components))
    return pipeline


class TestGuidedDiffusion(GenerationContract):
    pipeline_class = DiffusionImagePipeline
    always = {"num_inference_steps": 4}
    options = (
        {},
        {"guide_scale": 2.0},
        {"guide_scale": 2.0, "guide_condition": "null", "guide_interval": (0.3, 0.9)},
        {"classifier_scale": 4.0, "classifier_interval": (0.0, 0.6)},
        {"guidance_scale": 2.0, "guidance_schedule": "linear"},
        {"guidance_scale": 3.0, "guidance_rule": "apg", "apg_momentum": -0.5, "apg_threshold": 2.0},
        {"guidance_scale": 3.0, "guidance_rule": "zero-star", "zero_init": 0.25},
        {"guidance_scale": 1.5, "guide_scale": 2.0, "classifier_scale": 2.0},
    )
    tolerance = 1 / 255
    refused = (
        ({"guide_scale": -1.0}, "guide_scale must be 0 or more, got -1.0"),
        ({"guide_scale": 2.0, "guide_interval": (0.0, 1.5)}, "guide_interval must be two numbers"),
        ({"classifier_scale": 1.0, "classifier_interval": (-0.5, 0.5)}, "classifier_interval must be two numbers"),
        ({"classifier_scale": -1.0}, "classifier_scale must be 0 or more, got -1.0"),
        ({"apg_momentum": -0.5}, "apg_momentum is an option of guidance_rule apg, and guidance_rule is plain"),
        ({"zero_init": 0.5, "guidance_rule": "apg"}, "zero_init is an option of guidance_rule zero-star"),
        ({"guidance_rule": "apg", "apg_threshold": -1.0}, "apg_threshold must be a positive number or none"),
        ({"guide_condition": "all"}, "guide_condition must be one of class, null"),
    )

    def make(self) -> DiffusionImagePipeline:
        return guided_pipeline()


@pytest.mark.parametrize("kind", [HeunSampler, SDESampler, AdaptiveODESampler])
def test_an_image_is_its_own_under_every_solver(kind: Any) -> None:
    options: dict[str, Any] = {"rtol": 0.05, "atol": 0.05} if kind is AdaptiveODESampler else {}
    pipeline = guided_pipeline(scheduler=kind(**options))
    for network in (pipeline.denoiser, pipeline.guide, pipeline.classifier):
        for parameter in network.parameters():
            parameter.data.mul_(0.3)  # a smooth path: networks of large weights let rounding grow a millionfold
    options = {"guidance_scale": 1.5, "guidance_interval": (0.2, 0.8), "guide_scale": 1.5, "classifier_scale": 1.0}
    options |= {"classifier_interval": (0.1, 0.7)}
    together = run(pipeline, [0, 1, 2], **options)
    for order in ([1], [2, 0]):
        assert (run(pipeline, order, **options) - together[order]).abs().max() < 1 / 255
    assert not torch.equal(run(pipeline, [0, 1, 2]), together)


def test_nothing_runs_that_does_not_act() -> None:
    pipeline = guided_pipeline()
    calls: dict[str, list[int]] = {name: [] for name in ("denoiser", "guide", "classifier")}
    for name, seen in calls.items():
        getattr(pipeline, name).register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
    run(pipeline, [0, 1], num_inference_steps=8)
    assert calls == {"denoiser": [2] * 8, "guide": [], "classifier": []}
    calls["denoiser"].clear()
    options = {"guide_interval": (0.0, 0.55), "guide_scale": 2.0, "classifier_scale": 1.0, "classifier_interval": (0.45, 1.0)}
    run(pipeline, [0, 1], num_inference_steps=8, guidance_scale=2.0, guidance_interval=(0.4, 0.6), **options)
    assert sorted(calls["denoiser"]) == [2] * 6 + [4] * 2
    assert len(calls["guide"]) in (4, 5) and len(calls["classifier"]) in (4, 5)


def test_a_component_that_is_not_there_is_asked_for() -> None:
    pipeline = make_pipeline()
    for option, message in (
        ({"guide_scale": 2.0}, "guide_scale 2.0 needs a guide, and the pipeline has none; give --guide"),
        ({"classifier_scale": 1.0}, "classifier_scale 1.0 needs a noised classifier, and the pipeline has none"),
    ):
        with pytest.raises(UserError, match=message):
            run(pipeline, [0], **option)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"guide": lambda: tiny_guide(in_channels=4)}, "the guide takes 4 channels of 4x4, the denoiser 3 of 4x4"),
        ({"guide": lambda: tiny_guide(sample_size=8)}, "the guide takes 3 channels of 8x8, the denoiser 3 of 4x4"),
        ({"guide": lambda: tiny_guide(num_classes=5)}, "the guide knows 5 classes and the denoiser 3"),
        ({"guide": tiny_upsampler}, "the guide takes images of lower resolution of 2 pixels, the denoiser of no"),
        ({"guide": tiny_classifier}, "the guide is a ADMClassifier, which is no denoiser"),
        ({"classifier": lambda: tiny_classifier(sample_size=8)}, "the classifier takes 3 channels of 8x8, the denoiser 3 of 4x4"),
        ({"classifier": lambda: tiny_classifier(num_classes=2)}, "the classifier knows 2 classes and the denoiser 3"),
        ({"classifier": tiny_guide}, "the classifier is a DiT, a denoiser"),
        ({"classifier": lambda: nn.Linear(2, 2)}, "the classifier is a Linear, which is no classifier of noised samples"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_wherever_it_is_given(components: dict[str, Any], message: str) -> None:
    ((name, make),) = components.items()
    pipeline, network = make_pipeline(), make()
    with pytest.raises(UserError, match=message):
        pipeline.register_modules(**{name: network})
    with pytest.raises(UserError, match=message):
        setattr(pipeline, name, network)
    with pytest.raises(UserError, match=message):
        DiffusionImagePipeline(pipeline.denoiser, pipeline.scheduler, formulation=pipeline.formulation, **{name: network})
    assert getattr(pipeline, name) is None


def test_a_rule_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="guidance_rule zero-star is for flows that predict a velocity, and this denoiser"):
        make_pipeline(DDPMScheduler()).check_options(guidance_rule="zero-star", guidance_scale=2.0)
    pipeline = guided_pipeline(scheduler=AdaptiveODESampler())
    pipeline.check_options(guidance_rule="apg", guidance_scale=2.0)
    with pytest.raises(UserError, match="apg_momentum remembers what was predicted before, and the adaptive solver"):
        pipeline.check_options(guidance_rule="apg", guidance_scale=2.0, apg_momentum=-0.5)


def test_a_guide_without_a_null_condition_is_not_asked_for_it() -> None:
    pipeline = guided_pipeline(guide=tiny_guide(class_dropout_prob=0.0))
    assert run(pipeline, [0], guide_scale=2.0).isfinite().all()
    with pytest.raises(UserError, match="guide_condition 'null' needs a guide with a null condition"):
        run(pipeline, [0], guide_scale=2.0, guide_condition="null")


def test_a_guide_may_be_changed_and_taken_away(tmp_path: Path) -> None:
    pipeline = guided_pipeline()
    first = run(pipeline, [0], guide_scale=2.0)
    pipeline.guide = tiny_guide(depth=2)
    second = run(pipeline, [0], guide_scale=2.0)
    assert not torch.equal(first, second)
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(run(DiffusionImagePipeline.from_pretrained(tmp_path), [0], guide_scale=2.0), second)
    pipeline.guide = None
    with pytest.raises(UserError, match="needs a guide"):
        run(pipeline, [0], guide_scale=2.0)


def test_steps_that_zero_init_holds_still_are_no_evaluations() -> None:
    pipeline = make_pipeline()
    run(pipeline, [0, 1], guidance_scale=3.0, guidance_rule="zero-star", zero_init=0.25)
    assert pipeline.num_evaluations is not None and pipeline.num_evaluations.tolist() == [3, 3]
