"""Which schedulers of diffusers fit what a denoiser was trained on, and how they are adapted.

A denoiser knows one noising process, which its training scheduler stands for: a table of betas (Gaussian diffusion), straight
paths (flow matching), or EDM's scaling by ``sigma_data``. Sampling under another one gives images that look almost right.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant

Kind = Literal["gaussian", "flow", "edm"]
KIND_NAMES: dict[Kind, str] = {"gaussian": "Gaussian diffusion (betas)", "flow": "flow matching", "edm": "EDM"}

NOISE_OR_VELOCITY = ("epsilon", "v_prediction")
ANY_PREDICTION = (*NOISE_OR_VELOCITY, "sample")
# Schedulers that are tested to bring noise to the data's distribution under an exact denoiser, and what they let it predict.
GAUSSIAN_SCHEDULERS: dict[str, tuple[str, ...]] = {
    "DDIMParallelScheduler": ANY_PREDICTION,
    "DDIMScheduler": ANY_PREDICTION,
    "DDPMParallelScheduler": ANY_PREDICTION,
    "DDPMScheduler": ANY_PREDICTION,
    "DEISMultistepScheduler": ANY_PREDICTION,
    "DPMSolverMultistepScheduler": ANY_PREDICTION,
    "DPMSolverSinglestepScheduler": ANY_PREDICTION,
    "EulerAncestralDiscreteScheduler": NOISE_OR_VELOCITY,
    "EulerDiscreteScheduler": ANY_PREDICTION,
    "HeunDiscreteScheduler": ANY_PREDICTION,
    "KDPM2AncestralDiscreteScheduler": NOISE_OR_VELOCITY,
    "KDPM2DiscreteScheduler": NOISE_OR_VELOCITY,
    "LMSDiscreteScheduler": ANY_PREDICTION,
    "PNDMScheduler": NOISE_OR_VELOCITY,
    "SASolverScheduler": ANY_PREDICTION,
    "UniPCMultistepScheduler": ANY_PREDICTION,
}
# Solvers that take flows when they are told to; they round timesteps to whole numbers.
FLOW_SOLVERS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", *FLOW_SOLVERS)
EDM_SCHEDULERS = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
SCHEDULERS = tuple(sorted({*GAUSSIAN_SCHEDULERS, *FLOW_SCHEDULERS, *EDM_SCHEDULERS}))
"""All schedulers that can sample from some denoiser."""
# Those whose formulas hold where nothing of the data is left; the others divide by it unless ``rescale_betas_zero_snr`` says so.
DIVIDE_BY_NO_SIGNAL = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")
BETA_OPTIONS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
LEARNED_VARIANCE = ("learned", "learned_range")
# Of flow schedulers; networks are told the formulation's own time.
FLOW_TIMESTEPS = 1000


def class_name(scheduler: Any) -> str:
    """Name of the scheduler's class in diffusers, be it a subclass of one."""
    known = {*SCHEDULERS, "FlowMatchLCMScheduler"}
    return next((base.__name__ for base in type(scheduler).__mro__ if base.__name__ in known), type(scheduler).__name__)


def kind_of(scheduler: Any) -> Kind:
    """The process that a scheduler stands for, as a training or a sampling one.

    Raises:
        UserError: If it is none of them, or its betas leave no signal for the noise to be predicted from.
    """
    name = class_name(scheduler)
    if name in EDM_SCHEDULERS:
        return "edm"
    if scheduler.config.get("prediction_type") == "flow_prediction" or name.startswith("FlowMatch"):
        return "flow"
    if not isinstance(getattr(scheduler, "betas", None), Tensor):
        raise UserError(
            f"{name} has no betas and is not one of flow matching or EDM; use DDPMScheduler, or FlowMatchEulerDiscreteScheduler"
        )
    if ends_in_pure_noise(scheduler.betas) and scheduler.config.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(
            f"{name} has betas of zero terminal signal (rescale_betas_zero_snr) and prediction_type epsilon: from pure noise "
            "nothing of the data follows; use v_prediction or sample"
        )
    return "gaussian"


def ends_in_pure_noise(betas: Tensor) -> bool:
    """Whether betas (T,) leave nothing of the data at the last timestep."""
    return bool((betas >= 1).any())


def formulation_of(scheduler: Any, learned_variance: bool = False) -> Formulation:
    """The formulation that a diffusers scheduler stands for: of pipelines that were saved without one.

    Args:
        scheduler: What a denoiser was trained with.
        learned_variance: Whether the denoiser predicts a variance.

    Raises:
        UserError: If it stands for none.
    """
    kind, config = kind_of(scheduler), scheduler.config
    if kind == "flow":
        return Interpolant(time_scale=float(config.num_train_timesteps))
    if kind == "edm":
        return EDM(sigma_data=config.sigma_data, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho)
    prediction = config.get("prediction_type", "epsilon")
    named = {option: config[option] for option in BETA_OPTIONS if config.get(option) is not None}
    options = {"num_train_timesteps": len(scheduler.betas), "prediction_type": prediction, "learned_variance": learned_variance}
    try:
        formulation = GaussianDiffusion(**named, **options)
        if same_betas(formulation.process.betas, scheduler.betas):
            return formulation
    except UserError:
        pass
    return GaussianDiffusion(trained_betas=scheduler.betas.tolist(), **options)


def training_scheduler_of(formulation: Formulation) -> Any | None:
    """The diffusers scheduler that stands for a formulation; None where diffusers has none of the kind."""
    config = formulation.config
    if isinstance(formulation, GaussianDiffusion):
        options = {option: config[option] for option in BETA_OPTIONS}
        options["trained_betas"] = None if config.trained_betas is None else list(config.trained_betas)
        return DDPMScheduler(config.num_train_timesteps, prediction_type=config.prediction_type, **options)
    # Noise and score say nothing of the data at pure noise, where flow schedulers start.
    if isinstance(formulation, Interpolant) and config.path == "linear" and config.prediction_type in ("velocity", "sample"):
        return FlowMatchEulerDiscreteScheduler(FLOW_TIMESTEPS, shift=config.shift)
    if isinstance(formulation, EDM):
        return EDMEulerScheduler(config.sigma_min, config.sigma_max, config.sigma_data, rho=config.rho)
    return None


def fit_scheduler(scheduler: Any, formulation: Formulation) -> Any:
    """Make a scheduler sample from what was trained.

    Betas, number of timesteps and prediction type become the trained ones; solvers that know flows are told of one. How steps are
    spaced, and every other option, stays.

    Args:
        scheduler: Any scheduler of diffusers.
        formulation: What the denoiser was trained under.

    Returns:
        The scheduler itself if it fits, or one of its class that does.

    Raises:
        UserError: If it cannot, naming those that can.
    """
    training_scheduler = training_scheduler_of(formulation)
    if training_scheduler is None:
        raise UserError(
            f"{type(scheduler).__name__} does not fit this denoiser, which was trained as {type(formulation).__name__}, and no "
            "scheduler of diffusers does; take the sampler ode, sde or heun (in Python ODESampler, SDESampler or HeunSampler)"
        )
    kind = kind_of(training_scheduler)
    name, prediction = class_name(scheduler), training_scheduler.config.get("prediction_type", "epsilon")
    if kind == "gaussian":
        fitting = [known for known, predictions in GAUSSIAN_SCHEDULERS.items() if prediction in predictions]
        changes = gaussian_changes(scheduler, training_scheduler, prediction) if name in fitting else None
    elif kind == "flow":
        fitting = list(FLOW_SCHEDULERS)
        changes = flow_changes(scheduler, training_scheduler, name in FLOW_SOLVERS) if name in fitting else None
    else:
        fitting = list(EDM_SCHEDULERS)
        wanted = {"sigma_data": training_scheduler.config.sigma_data, "prediction_type": prediction}
        changes = differences(scheduler, wanted) if name in fitting else None
    if kind == "gaussian" and ends_in_pure_noise(training_scheduler.betas):
        fitting = [known for known in fitting if knows_pure_noise(known)]
        changes = changes if name in fitting else None
    if changes is None:
        detail = f" with prediction_type {prediction}" if kind == "gaussian" else ""
        raise UserError(
            f"{name} does not fit this denoiser, which was trained for {KIND_NAMES[kind]}{detail}; use {', '.join(fitting)}"
        )
    return rebuild(scheduler, changes) if changes else scheduler


def knows_pure_noise(name: str) -> bool:
    """Whether a scheduler of diffusers can start where nothing of the data is left."""
    return name in DIVIDE_BY_NO_SIGNAL or takes(getattr(diffusers, name), "rescale_betas_zero_snr")


def takes(scheduler_class: type, option: str) -> bool:
    """Whether the class has an option."""
    return option in inspect.signature(scheduler_class).parameters


def differences(scheduler: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Of the options wanted, those that the class has and that are set otherwise."""
    return {
        option: value
        for option, value in wanted.items()
        if takes(type(scheduler), option) and scheduler.config.get(option) != value
    }


def rebuild(scheduler: Any, changes: dict[str, Any]) -> Any:
    """A scheduler of the same class and options but some.

    Raises:
        UserError: If its class refuses them.
    """
    try:
        return type(scheduler).from_config(scheduler.config, **changes)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"{type(scheduler).__name__} cannot be made to fit what was trained ({', '.join(changes)}): {error}"
        ) from error


def flow_changes(scheduler: Any, training_scheduler: Any, is_solver: bool) -> dict[str, Any]:
    """What must change in a scheduler for it to sample the flow that was trained."""
    wanted = {"num_train_timesteps": training_scheduler.config.num_train_timesteps, "invert_sigmas": False}
    if is_solver:
        # The other tables of sigmas are those of betas, and would be taken in place of the flow's.
        others = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        wanted |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True} | dict.fromkeys(others, False)
        shift = scheduler.config.get("shift", training_scheduler.config.shift)  # of the flow scheduler that it is made from
        if "flow_shift" in scheduler.config.get("_use_default_values", ()):
            wanted["flow_shift"] = shift
    return differences(scheduler, wanted)


def gaussian_changes(scheduler: Any, training_scheduler: Any, prediction: str) -> dict[str, Any]:
    """What must change in a scheduler for it to sample the diffusion that was trained."""
    trained = training_scheduler.betas
    wanted = {"num_train_timesteps": len(trained), "prediction_type": prediction, "use_flow_sigmas": False}
    # EDM's timesteps in place of the table's, of which the denoiser knows nothing.
    changes = differences(scheduler, wanted | {"timestep_type": "discrete"})
    if not same_betas(scheduler.betas, trained):
        named = {option: training_scheduler.config.get(option) for option in BETA_OPTIONS}
        named["rescale_betas_zero_snr"] = bool(named["rescale_betas_zero_snr"])
        named = {option: value for option, value in named.items() if takes(type(scheduler), option)}
        exact = {"trained_betas": trained.tolist()}
        if takes(type(scheduler), "rescale_betas_zero_snr"):
            exact["rescale_betas_zero_snr"] = False
        changes |= named if has_betas(scheduler, changes | named, trained) else exact
    if ends_in_pure_noise(trained) and class_name(scheduler) not in DIVIDE_BY_NO_SIGNAL:
        changes |= differences(scheduler, {"rescale_betas_zero_snr": True})
    return changes


def has_betas(scheduler: Any, changes: dict[str, Any], betas: Tensor) -> bool:
    """Whether changed options give these betas: a class may not know their schedule by name."""
    try:
        return same_betas(rebuild(scheduler, changes).betas, betas)
    except UserError:
        return False


def same_betas(first: Tensor, second: Tensor) -> bool:
    """Whether two tables are the same but for rounding."""
    return first.shape == second.shape and torch.allclose(first.double(), second.double(), rtol=1e-5, atol=1e-9)


def uses_learned_variance(scheduler: Any) -> bool:
    """Whether a scheduler takes steps with the variance that the denoiser predicts."""
    # An attribute of its own (DDPM, UnCLIP): others only carry the entry along in their config.
    return vars(scheduler).get("variance_type") in LEARNED_VARIANCE


def missing_variance(scheduler: Any) -> str:
    """What is said where such a scheduler meets a denoiser without a variance."""
    return (
        f"{type(scheduler).__name__} has variance_type '{scheduler.variance_type}' but the network predicts no variance; "
        "set variance_type to fixed_small, or train a network with learn_sigma"
    )
