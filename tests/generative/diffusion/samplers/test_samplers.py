"""Samplers on a denoiser that is exact for Gaussian data: they give that Gaussian, at the order their papers promise."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.ddim import DDIMSampler
from generative.diffusion.samplers.dpm_solver import DPMSolverSampler, FormulationSchedule, solver_orders
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ode import ODESampler
from generative.diffusion.samplers.sde import SDESampler

sys.path.append(str(Path(__file__).parents[1]))
from exact import CONTINUOUS, GAUSSIAN, MEAN, STD, exact_end, exact_predict, noise_state  # noqa: E402

# The sigmoid schedule is flat at pure noise, where even steps in time say nothing of an order.
SMOOTH = [name for name in CONTINUOUS if name != "sigmoid"]
STOCHASTIC: dict[str, Sampler] = {
    "ancestral": AncestralSampler(),
    "ddim, eta 1": DDIMSampler(eta=1.0),
    "heun, churn": HeunSampler(churn=20.0),
    "sde": SDESampler(),
    "sde, heun": SDESampler("increasing-decreasing", method="heun"),
}


def streams(count: int) -> ImageNoise:
    return ImageNoise([torch.Generator().manual_seed(seed) for seed in range(count)])


def run(sampler: Sampler, formulation: Formulation, steps: int, state: SampleState | None = None) -> Tensor:
    state = noise_state() if state is None else state
    return sampler.sample(exact_predict(formulation), state, steps, streams(len(state.sample)), formulation).sample


def ode_error(method: str, formulation: Formulation, steps: int) -> float:
    first, last = formulation.sampling_times(1)[:1], formulation.sampling_times(1)[1:]
    start = noise_state().sample.double() * formulation.alpha_sigma(first)[1]
    found = run(ODESampler(method), formulation, steps)  # type: ignore[arg-type]
    return float((found - exact_end(formulation, start, first, last)).abs().max())


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_fixed_steps_converge_at_their_order(method: str, order: int, name: str) -> None:
    coarse, fine = (ode_error(method, CONTINUOUS[name], steps) for steps in (64, 128))
    assert math.log2(coarse / fine) > order - 0.5
    assert fine < (0.04 if order == 1 else 0.01)


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_adaptive_steps_reach_their_tolerance(name: str) -> None:
    formulation = CONTINUOUS[name]
    first = formulation.sampling_times(1)[:1]
    start = noise_state().sample.double() * formulation.alpha_sigma(first)[1]
    wanted = exact_end(formulation, start, first, formulation.sampling_times(1)[1:])
    state = AdaptiveODESampler(atol=1e-5, rtol=1e-4).sample(exact_predict(formulation), noise_state(), 1, streams(4), formulation)
    assert float((state.sample - wanted).abs().max()) < 0.012
    assert bool((state.memory["num_evaluations"] > 10).all())


def test_adaptive_steps_of_an_image_do_not_depend_on_its_neighbours() -> None:
    formulation = CONTINUOUS["gvp"]
    whole = noise_state().sample
    whole[1] *= 40  # harder than the others: its steps must not become theirs
    together = AdaptiveODESampler().sample(exact_predict(formulation), SampleState(whole), 1, streams(4), formulation)
    for row in range(4):
        alone = AdaptiveODESampler().sample(
            exact_predict(formulation), SampleState(whole[row : row + 1]), 1, streams(1), formulation
        )
        assert torch.equal(alone.sample[0], together.sample[row])
        assert int(alone.memory["num_evaluations"][0]) == int(together.memory["num_evaluations"][row])
    assert len(set(together.memory["num_evaluations"].tolist())) > 1


def test_states_end_in_the_sample() -> None:
    for sampler, formulation, count in (
        (ODESampler("heun"), CONTINUOUS["linear"], 5),
        (SDESampler(), CONTINUOUS["linear"], 5),
        (DPMSolverSampler(2), CONTINUOUS["linear"], 5),
        (HeunSampler(), CONTINUOUS["edm"], 5),
        (AncestralSampler(), GAUSSIAN["noise"], 5),
    ):
        states = list(sampler.states(exact_predict(formulation), noise_state(), 5, streams(4), formulation))
        assert len(states) == count
        assert torch.equal(states[-1].sample.float(), run(sampler, formulation, 5))


def test_unreachable_tolerance_ends_in_a_sentence() -> None:
    with pytest.raises(UserError, match="did not reach atol .* in 3 steps"):
        run(AdaptiveODESampler(rtol=1e-9, max_steps=3), CONTINUOUS["linear"], 1)


@pytest.mark.parametrize("name", [*CONTINUOUS, *GAUSSIAN])
def test_heun_converges_on_every_formulation(name: str) -> None:
    formulation = (CONTINUOUS | GAUSSIAN)[name]
    start = noise_state().sample.double() * 80
    wanted = MEAN + STD / math.sqrt(STD**2 + 80**2) * (start - MEAN)
    coarse, fine = (float((run(HeunSampler(), formulation, steps) - wanted).abs().max()) for steps in (32, 64))
    assert fine < 0.006 and math.log2(coarse / fine) > 1.9


@pytest.mark.parametrize("name", ["linear", "gvp", "edm", "cosine", "noise", "v"])
def test_churn_keeps_the_data(name: str) -> None:
    found = run(HeunSampler(churn=40.0), (CONTINUOUS | GAUSSIAN)[name], 64, noise_state(64, 8))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=0.05)


def test_a_churn_limit_of_zero_lets_none_through() -> None:
    even, limited = (run(sampler, Interpolant(), 4) for sampler in (HeunSampler(), HeunSampler(churn=2.0, churn_max=0.0)))
    assert torch.equal(even, limited)
    assert not torch.equal(even, run(HeunSampler(churn=2.0), Interpolant(), 4))


def test_heun_of_order_one_is_euler_and_costs_half() -> None:
    calls = {1: 0, 2: 0}
    formulation = CONTINUOUS["edm"]
    for order in calls:
        predict = exact_predict(formulation)

        def counted(state: SampleState, time: Tensor, order: int = order, predict: object = predict) -> object:
            calls[order] += 1
            return predict(state, time)  # type: ignore[operator]

        HeunSampler(order=order).sample(counted, noise_state(), 8, streams(4), formulation)  # type: ignore[arg-type]
    assert calls == {1: 8, 2: 15}


def dpm_error(sampler: DPMSolverSampler, formulation: Formulation, steps: int) -> float:
    start, end = (time[None] for time in FormulationSchedule(formulation).ends())
    first = noise_state().sample.double() * formulation.alpha_sigma(start)[1].double()
    return float((run(sampler, formulation, steps) - exact_end(formulation, first, start, end)).abs().max())


@pytest.mark.parametrize("name", [*CONTINUOUS, *GAUSSIAN])
@pytest.mark.parametrize(("order", "steps"), [(1, 48), (2, 48), (3, 95)])
def test_dpm_solver_converges_at_its_order_on_every_formulation(order: int, steps: int, name: str) -> None:
    formulation = (CONTINUOUS | GAUSSIAN)[name]
    # Numbers of evaluations that do not end in a step of order 1, where the highest order shows.
    coarse, fine = (dpm_error(DPMSolverSampler(order), formulation, number) for number in (steps, 2 * steps + (order == 3)))
    assert math.log2(coarse / fine) > order - 0.5
    assert fine < {1: 0.04, 2: 0.004, 3: 1e-5}[order]


@pytest.mark.parametrize("name", ["linear, noise", "vp", "vp-sde", "noise", "v"])
@pytest.mark.parametrize(("order", "steps"), [(1, 48), (2, 48), (3, 95)])
def test_dpm_solver_of_the_noise_converges_at_its_order(order: int, steps: int, name: str) -> None:
    known = CONTINUOUS | GAUSSIAN | {"linear, noise": Interpolant(prediction_type="epsilon", min_level=1e-3, max_level=0.98)}
    sampler = DPMSolverSampler(order, algorithm="dpmsolver")
    coarse, fine = (dpm_error(sampler, known[name], number) for number in (steps, 2 * steps + (order == 3)))
    assert math.log2(coarse / fine) > order - 0.5
    assert fine < {1: 0.1, 2: 0.01, 3: 1e-4}[order]


@pytest.mark.parametrize("name", ["linear", "gvp", "vp", "noise", "v"])
def test_dpm_solver_converges_in_even_times_too(name: str) -> None:
    coarse, fine = (dpm_error(DPMSolverSampler(grid="time_uniform"), (CONTINUOUS | GAUSSIAN)[name], steps) for steps in (95, 191))
    assert fine < 0.006 and coarse / fine > 3.5


@pytest.mark.parametrize("name", list(GAUSSIAN))
def test_ddim_brings_data_back_to_the_noise_that_makes_them(name: str) -> None:
    formulation, sampler = GAUSSIAN[name], DDIMSampler()
    data = MEAN + STD * noise_state().sample
    noise = sampler.invert(exact_predict(formulation), SampleState(data), 500, formulation)
    torch.testing.assert_close(noise.sample, (data - MEAN) / STD, rtol=0, atol=0.05, check_dtype=False)
    back = sampler.sample(exact_predict(formulation), noise, 500, streams(4), formulation)
    torch.testing.assert_close(back.sample, data, rtol=0, atol=0.02, check_dtype=False)
    with pytest.raises(UserError, match="only the deterministic DDIM can be turned round; set eta to 0, got 0.5"):
        DDIMSampler(eta=0.5).invert(exact_predict(formulation), noise_state(), 10, formulation)


def test_dpm_solver_of_order_one_is_ddim() -> None:
    formulation = GAUSSIAN["noise"]
    found = run(DPMSolverSampler(1, "time_uniform"), formulation, 999)  # every step of the chain
    torch.testing.assert_close(found, run(DDIMSampler(), formulation, 1000), atol=0.02, rtol=0)


def test_dpm_solver_evaluates_as_often_as_it_is_told() -> None:
    formulation, times = CONTINUOUS["linear"], list[float]()

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        times.append(float(time))
        return exact_predict(formulation)(state, time)

    for steps in (1, 2, 3, 8, 14):
        for sampler in (DPMSolverSampler(), DPMSolverSampler(2), DPMSolverSampler(grid="time_uniform")):
            times.clear()
            sampler.sample(predict, noise_state(), steps, streams(4), formulation)
            assert len(times) == steps and times == sorted(times, reverse=True)
    assert [solver_orders(7, order) for order in (1, 2, 3)] == [[1] * 7, [2, 2, 2, 1], [3, 3, 1]]


@pytest.mark.parametrize("name", ["linear", "linear, time scaled", "linear, data at 1, shifted", "gvp", "vp", "cosine", "vp-sde"])
@pytest.mark.parametrize("form", ["sigma", "linear", "decreasing", "increasing-decreasing"])
def test_every_sde_ends_in_the_data(name: str, form: str) -> None:
    found = run(SDESampler(form), CONTINUOUS[name], 100, noise_state(64, 8))  # type: ignore[arg-type]
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=0.13)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("form", ["sbdm", "constant", "increasing-decreasing"])
def test_every_form_and_method_of_the_sde_keeps_the_data(form: str, method: str) -> None:
    formulation = Interpolant(prediction_type="epsilon", min_level=1e-3, max_level=0.98)
    # Not "mean", which adds no noise where the constant form takes most of it away.
    sampler = SDESampler(form, last_step="euler", method=method)  # type: ignore[arg-type]
    found = run(sampler, formulation, 300, noise_state(64, 8))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", "none"])
def test_last_steps(last_step: str) -> None:
    # The expected data lack the variance that is left; the others keep it.
    found = run(SDESampler(last_step=last_step), CONTINUOUS["linear"], 200, noise_state(64, 8))  # type: ignore[arg-type]
    assert float(found.std()) == pytest.approx(STD, rel=0.05)


def test_sbdm_is_refused_where_it_has_no_limit_and_runs_where_it_has() -> None:
    with pytest.raises(UserError, match="form 'sbdm' of the SDE has no limit at pure noise"):
        run(SDESampler("sbdm"), CONTINUOUS["linear"], 10)
    found = run(SDESampler("sbdm"), Interpolant(max_level=0.999), 100, noise_state(64, 8))
    assert float(found.std()) == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("name", list(GAUSSIAN))
@pytest.mark.parametrize("sampler", [AncestralSampler("small"), AncestralSampler("large"), DDIMSampler(), DDIMSampler(0.5)])
def test_chains_end_in_the_data(sampler: Sampler, name: str) -> None:
    found = run(sampler, GAUSSIAN[name], 250, noise_state(64, 8))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=0.06)


def test_respacing_must_agree_with_the_number_of_steps() -> None:
    run(DDIMSampler(respacing="ddim25"), GAUSSIAN["noise"], 25)
    with pytest.raises(UserError, match="respacing 'ddim25' has 25 steps, num_inference_steps is 20"):
        run(DDIMSampler(respacing="ddim25"), GAUSSIAN["noise"], 20)


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    sampler = STOCHASTIC[name]
    formulation = GAUSSIAN["noise"] if name.startswith(("ancestral", "ddim")) else CONTINUOUS["linear"]
    whole = noise_state().sample
    together = run(sampler, formulation, 12, SampleState(whole))
    alone = sampler.sample(
        exact_predict(formulation), SampleState(whole[2:3]), 12, ImageNoise([torch.Generator().manual_seed(2)]), formulation
    )
    assert torch.equal(alone.sample[0], together[2])


@pytest.mark.parametrize("sampler", [*STOCHASTIC.values(), ODESampler("heun"), DPMSolverSampler(2, "time_uniform")])
def test_saved_and_loaded_sampler_is_the_same(sampler: Sampler, tmp_path: Path) -> None:
    sampler.save_pretrained(tmp_path)
    loaded = type(sampler).from_pretrained(tmp_path)
    assert {key: value for key, value in sampler.config.items() if not key.startswith("_")}.items() <= loaded.config.items()


@pytest.mark.parametrize(
    ("sampler", "formulation", "steps", "message"),
    [
        (ODESampler(), CONTINUOUS["linear"], 0, "num_inference_steps must be at least 1, got 0"),
        (DPMSolverSampler(), CONTINUOUS["linear"], 0, "num_inference_steps must be at least 1, got 0"),
        (SDESampler(), CONTINUOUS["linear"], 1, "must be at least 2"),
        (ODESampler(), GAUSSIAN["noise"], 5, "no continuous time"),
        (AncestralSampler(), CONTINUOUS["linear"], 5, "was trained as Interpolant"),
        (DDIMSampler(), GAUSSIAN["noise"], 1001, "num_inference_steps must be in 1..1000, got 1001"),
        (AncestralSampler("learned"), GaussianDiffusion(), 5, "trained with learned_variance"),
    ],
)
def test_what_does_not_fit_is_refused(sampler: Sampler, formulation: Formulation, steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(sampler, formulation, steps)


def test_wrong_options_of_dpm_solver_are_refused() -> None:
    with pytest.raises(UserError, match="order must be 1, 2 or 3, got 4"):
        DPMSolverSampler(4)
    with pytest.raises(UserError, match="grid must be log_snr or time_uniform, got 'karras'"):
        DPMSolverSampler(grid="karras")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"algorithm must be dpmsolver\+\+ or dpmsolver, got 'ddim'"):
        DPMSolverSampler(algorithm="ddim")  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_solver_clips_the_data_that_a_noise_implies(algorithm: str) -> None:
    formulation = CONTINUOUS["vp-sde"]

    def far_off(state: SampleState, time: Tensor) -> DenoiserOutput:
        return DenoiserOutput(exact_predict(formulation)(state, time).prediction + 1)

    largest = {}
    for clips in (False, True):
        sampler = DPMSolverSampler(algorithm=algorithm, clip_sample=clips)  # type: ignore[arg-type]
        largest[clips] = float(sampler.sample(far_off, noise_state(), 20, streams(4), formulation).sample.abs().max())
    assert largest[True] < 1.2 < 2 < largest[False]
