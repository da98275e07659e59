"""A denoiser with a memory: how it is trained to read it, and that sampling carries it, image by image."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise, sample_generators
from generative.core.types import Batch, StepContext
from generative.diffusion.denoiser import Branch, Condition, evaluator
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.rin import RIN
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.self_conditioning import SelfConditioning
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.gamma import GammaSampler
from pipelines.diffusion import DiffusionImagePipeline

FORMULATION = ContinuousDiffusion("simple_linear", network_time="gamma", time_scale=1000.0)
SIZES: dict[str, Any] = {
    "sample_size": 4,
    "patch_size": 2,
    "num_layers": (1,),
    "latent_slots": 4,
    "latent_dim": 16,
    "latent_num_heads": 2,
    "tape_dim": 8,
    "rw_num_heads": 2,
    "num_classes": 3,
}
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-3)


def make_rin(**options: Any) -> RIN:
    """A tiny RIN with random weights, so that its memory shows."""
    torch.manual_seed(0)
    network = RIN(**(SIZES | {"class_dropout_prob": 0.1} | options))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def make_objective(**options: Any) -> DiffusionObjective:
    return DiffusionObjective(make_rin(), FORMULATION, OPTIMIZER, **({"self_conditioning": SelfConditioning()} | options))


def make_batch(count: int = 8) -> Batch:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return {"images": images, "class_labels": torch.arange(count) % 3}


class Recorder(torch.nn.Module):
    """Hands calls on and remembers them."""

    def __init__(self, network: RIN) -> None:
        super().__init__()
        self.network, self.dtype = network, torch.float32
        self.calls: list[tuple[int, tuple[torch.Tensor, ...], bool]] = []

    def forward(self, sample: Any, time: Any, labels: Any, memory: tuple[torch.Tensor, ...] = ()) -> Any:
        self.calls.append((len(sample), memory, torch.is_grad_enabled()))
        return self.network(sample, time, labels, memory)


@pytest.mark.parametrize(("by_masking", "asked"), [(True, 8), (False, 6)])
def test_some_examples_remember_what_the_network_gave_without_memory(by_masking: bool, asked: int) -> None:
    objective = make_objective(self_conditioning=SelfConditioning(rate=0.75, by_masking=by_masking))
    recorder = Recorder(make_rin())
    objective.loss({"denoiser": recorder}, make_batch(), StepContext(0, 0, torch.Generator().manual_seed(0)))
    (first, before, has_gradient), (second, memory, _) = recorder.calls
    assert (first, before, has_gradient, second) == (asked, (), False, 8)
    remembers = memory[0].flatten(1).any(1)
    assert 0 < int(remembers.sum()) < 8 and not memory[0].requires_grad
    assert by_masking or remembers.tolist() == [True] * 6 + [False] * 2


def test_the_scale_of_the_memory_learns() -> None:
    network = RIN(**SIZES)
    objective = DiffusionObjective(network, FORMULATION, OPTIMIZER, self_conditioning=SelfConditioning())
    objective.loss({"denoiser": network}, make_batch(), StepContext(0, 0, torch.Generator().manual_seed(0)))["loss"].backward()
    assert network.latent_memory[1].weight.grad.any()


def test_a_memory_is_trained_or_not_there() -> None:
    with pytest.raises(UserError, match="this RIN reads back what it gave at the step before and must be trained to"):
        make_objective(self_conditioning=None)
    dit = DiT(sample_size=4, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(UserError, match="self_conditioning needs a denoiser with a memory, and this DiT has none"):
        DiffusionObjective(dit, FORMULATION, OPTIMIZER, self_conditioning=SelfConditioning())
    with pytest.raises(UserError, match=r"self_conditioning.rate must be in \(0, 1\], got 0"):
        SelfConditioning(rate=0)


def test_all_branches_read_what_the_conditional_one_gave() -> None:
    recorder = Recorder(make_rin())
    evaluate, state = evaluator(recorder, FORMULATION), SampleState(torch.randn(2, 3, 4, 4))
    condition = Condition(torch.tensor([0, 1]))
    branches = [Branch(condition), Branch(condition.null(3))]
    with torch.no_grad():
        conditional, _ = evaluate(state, torch.tensor([0.9]), branches)
        evaluate(state, torch.tensor([0.8]), branches)
    memory = recorder.calls[1][1]
    assert recorder.calls[0][1] == () and torch.equal(memory[0], conditional.memory[0].repeat(2, 1, 1))


def make_pipeline(guide: RIN | None = None, **options: Any) -> DiffusionImagePipeline:
    sampler = GammaSampler(schedule="offset_cosine", clip_sample=True)
    pipeline = DiffusionImagePipeline(make_rin(**options), sampler, formulation=FORMULATION, guide=guide)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampler", [None, "gamma:method=ddim", "ode:method=heun", "heun", "sde", "dpm-solver"])
def test_an_image_is_the_same_in_any_batch(sampler: str | None) -> None:
    pipeline = make_pipeline(guide=make_rin(latent_slots=5), self_cond="latent+tape")

    def run(order: list[int]) -> torch.Tensor:
        generators = sample_generators(0, [0, 1, 2], [0, 0, 0])
        chosen = [generators[index] for index in order]
        options = {"num_inference_steps": 3, "guidance_scale": 2.0, "guide_scale": 1.5, "sampler": sampler}
        return pipeline(order, generator=chosen, output_type="pt", **options).images

    together = run([0, 1, 2])
    for order in ([1], [2, 0]):
        assert float((run(order) - together[order]).abs().max()) < 1 / 255


def test_the_memory_of_a_run_is_its_own() -> None:
    pipeline = make_pipeline()
    noise = [ImageNoise([torch.Generator().manual_seed(0)]) for _ in range(3)]
    options = DiffusionOptions(num_inference_steps=3)
    with torch.no_grad():
        first, again = (pipeline.sample(torch.tensor([1]), options, each).sample for each in noise[:2])
        assert torch.equal(first, again)
        pipeline.denoiser.latent_memory[1].weight.zero_()
        pipeline.denoiser.latent_memory[1].bias.zero_()
        forgetful = pipeline.sample(torch.tensor([1]), options, noise[2]).sample
    assert not torch.allclose(first, forgetful)


def test_a_solver_that_tries_again_is_refused() -> None:
    with pytest.raises(UserError, match="this denoiser remembers what it gave at the step before, and the adaptive solver tries"):
        make_pipeline()([0], sampler="dopri5")
    assert make_pipeline(self_cond="none")([0], sampler="dopri5:rtol=0.5,atol=0.5").images
