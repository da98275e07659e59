"""Checkpoints of the SiT authors' code (willisma/SiT), whose network is DiT's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import NUMBER, POSITIVE, Argument, Constructor, Kind, one_of, optional
from generative.convert.diffusion.dit_layout import NETWORK_ARGUMENTS, SAMPLING_STEPS, DiTLayoutSource
from generative.core.errors import UserError
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.sde import SDESampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# Share of the path that is left out at an end where a prediction has no limit.
OFFICIAL_EPS = 1e-3
OPTIONS = Kind("options by name", lambda value: isinstance(value, Mapping))
# Options of the official SDE sampler, as the sampling script's defaults (arXiv 2401.08740, section 3.3).
SDE = Constructor(
    "SDE sampler",
    "willisma/SiT",
    {
        "diffusion_form": Argument(
            "form",
            "sigma",
            one_of(
                {
                    "SBDM": "sbdm",
                    "sigma": "sigma",
                    "linear": "linear",
                    "constant": "constant",
                    "decreasing": "decreasing",
                    "increasing-decreasing": "increasing-decreasing",
                    "inccreasing-decreasing": "increasing-decreasing",  # the official sampler's spelling, the script's is above
                }
            ),
        ),
        "diffusion_norm": Argument("diffusion_scale", 1.0, NUMBER),
        "last_step": Argument(
            "last_step", "Mean", one_of({"Mean": "mean", "Tweedie": "tweedie", "Euler": "euler", None: "none", "None": "none"})
        ),
        "last_step_size": Argument("last_step_size", 0.04, NUMBER),
        "sampling_method": Argument("method", "Euler", one_of({"Euler": "euler", "Heun": "heun"})),
        "num_steps": Argument(None, SAMPLING_STEPS, POSITIVE),
    },
)
CONSTRUCTOR = Constructor(
    "SiT",
    "willisma/SiT",
    {
        **NETWORK_ARGUMENTS,
        "path_type": Argument(None, "Linear", one_of({"Linear": "linear", "GVP": "gvp", "VP": "vp"})),
        "prediction": Argument(None, "velocity", one_of({"velocity": "velocity", "noise": "epsilon", "score": "score"})),
        "loss_weight": Argument(
            None, None, one_of({None: "uniform", "None": "uniform", "velocity": "velocity", "likelihood": "likelihood"})
        ),
        "train_eps": Argument(None, None, optional(NUMBER)),
        "sample_eps": Argument(None, None, optional(NUMBER)),
        "sde": Argument(None, {}, OPTIONS),
        "ode_num_steps": Argument(None, 50, POSITIVE),
    },
)


def formulation(config: Mapping[str, Any]) -> Interpolant:
    """The official path and prediction, over the part of the path that the official samplers take.

    Args:
        config: Official options; ``path_type``, ``prediction``, ``loss_weight``, ``train_eps`` and ``sample_eps`` are read.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    path, prediction = values["path_type"], values["prediction"]
    # Officially sample_eps counts only beside train_eps, and a velocity has a limit at both ends of two of the paths.
    eps = OFFICIAL_EPS if values["train_eps"] is None else values["sample_eps"]
    if path != "vp" and prediction == "velocity":
        eps = 0.0
    if eps is None:
        raise UserError("SiT option train_eps of willisma/SiT needs sample_eps beside it; give both or neither")
    return Interpolant(
        path=path,
        prediction_type=prediction,
        data_time=1,
        weighting="uniform" if prediction == "velocity" else values["loss_weight"],
        min_level=eps,
        max_level=1.0 if path == "vp" else 1 - eps,
    )


def sde_sampler(config: Mapping[str, Any], **change: Any) -> SDESampler:
    """The official SDE sampler.

    Args:
        config: Official options; ``sde`` is read.
        **change: Other values of some options of ``sde``.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    return SDESampler(**SDE.read({**CONSTRUCTOR.values(config)["sde"], **change}))


class SiTSource(DiTLayoutSource):
    """SiT as ``models.py`` of willisma/SiT builds it; half of what it computes with ``learn_sigma`` is officially dropped."""

    name = "sit"
    repository = "willisma/SiT"
    constructor = CONSTRUCTOR
    script_arguments = ("path_type", "prediction", "loss_weight", "train_eps", "sample_eps")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """See ``DiTLayoutSource.build``; options of the path and the samplers may be among the official arguments."""
        formulation(config)
        sde_sampler(config)
        return super().build(config)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """See ``read_network``; the path and the prediction, which no tensor tells, are the published models'."""
        found = super().recognise(state)
        return None if found is None else {**found, "path_type": "Linear", "prediction": "velocity"}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the SDE that the published figure was sampled with; the autoencoder is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        defaults = {"num_inference_steps": SDE.values(CONSTRUCTOR.values(config)["sde"])["num_steps"]}
        return DiffusionImagePipeline(
            networks["model"],
            sde_sampler(config),
            sampling_defaults=defaults | self.guidance_defaults(config),
            formulation=formulation(config),
        )
