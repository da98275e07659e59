"""Checkpoints of eMIGM's authors' code (ML-GSAI/eMIGM)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.head_samplers import head_sampler
from generative.autoregressive.masking import ScheduledMasking
from generative.convert.arguments import FLAG, NUMBER, SHARE, TEXT, Argument, Constructor, one_of
from generative.convert.autoregressive.mar import SHARED_ARGUMENTS, MaskedAutoencoderSource, chain_timesteps, rename_keys
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.emigm import EMIGMPipeline

# What the published models were trained with, which no tensor tells (bash/train).
PUBLISHED = MappingProxyType({"use_unsup_cfg": True, "mask_strategy": "exp", "clamp_t_min": 0.2})
# What the published figures of 16 iterations were sampled with (bash/evaluate): evaluations of the head, guidance, and its times
# at 256 pixels by width (H has its own) and at 512.
ITERATIONS, SOLVER_STEPS, GUIDANCE = 16, 8, 4.0
INTERVALS_256 = MappingProxyType({1280: (0.2, 0.4)})
INTERVAL_256, INTERVAL_512 = (0.1, 0.3), (0.15, 0.35)
LATENT_CHANNELS_512 = 32


CONSTRUCTOR = Constructor(
    "eMIGM",
    "ML-GSAI/eMIGM",
    {
        **SHARED_ARGUMENTS,
        "use_mae": Argument("drop_masked", True, FLAG),
        "use_unsup_cfg": Argument("tie_mask_embedding", False, FLAG),
        "mask_strategy": Argument("mask_strategy", "cosine", TEXT),
        "use_weighted_loss": Argument(None, False, FLAG),
        "clamp_t_min": Argument(None, 0, NUMBER),
        "cfg_t_min": Argument(None, 0.0, SHARE),
        "cfg_t_max": Argument(None, 1.0, SHARE),
        "sampling_algo": Argument(None, "ddpm", one_of(("ddpm", "dpm-solver"))),
    },
)


def check_sampler(solver: Any, steps: Any) -> int | list[int]:
    """Steps of the head's sampler.

    Args:
        solver: Official ``sampling_algo``.
        steps: Official ``num_sampling_steps``.

    Raises:
        UserError: If they are unknown or out of range.
    """

    chosen = chain_timesteps(steps)
    head_sampler(solver, chosen, 1.0)
    return chosen


class EMIGMSource(MaskedAutoencoderSource):
    """eMIGM as ``models/emigm.py`` of ML-GSAI/eMIGM builds it.

    Checkpoints with a mask token of their own (``use_unsup_cfg`` off, as no published one) have MAR's very keys: they are told
    from MAR's by ``--source emigm`` with all options in ``--config``.
    """

    name = "emigm"
    repository = CONSTRUCTOR.repository
    constructor = CONSTRUCTOR
    network = EMIGM

    def check(self, values: Mapping[str, Any]) -> None:
        """Check the options of masking, guidance and the head's sampler.

        Raises:
            UserError: If one is out of range.
        """
        ScheduledMasking(values["mask_strategy"], values["clamp_t_min"], values["use_weighted_loss"])
        low, high = values["cfg_t_min"], values["cfg_t_max"]
        if low > high:
            raise UserError(f"cfg_t_min and cfg_t_max of {self.repository} must be 0 <= min <= max <= 1, got {low} and {high}")
        check_sampler(values["sampling_algo"], values["num_sampling_steps"])

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict.

        A tied mask token is stored under both names. In ``model_ema`` they differ: only ``fake_latent`` was averaged, and the
        official loader, which reads both into one parameter, ends with ``mask_token``. So does this one.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our eMIGM.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        if not network.config.tie_mask_embedding:
            return rename_keys("eMIGM", state)
        rest = dict(state)
        mask_token = rest.pop("mask_token", None)
        if mask_token is not None and "fake_latent" in rest:
            rest["fake_latent"] = mask_token
        return rename_keys("eMIGM", rest)

    def is_own(self, state: Mapping[str, Tensor]) -> bool:
        """A tied mask token has the two axes of the null embedding."""
        return state["mask_token"].ndim == 2

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """As MAR's, with what the published models were trained with."""
        found = super().recognise(state)
        return None if found is None else found | dict(PUBLISHED)

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> EMIGMPipeline:
        """Pipeline with the options' sampling, or where they tell none the published one of 16 iterations.

        The autoencoder, which no checkpoint holds, is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.emigm import EMIGMPipeline

        network = networks["model"]
        published = INTERVALS_256.get(network.config.encoder_hidden_size, INTERVAL_256)
        if network.config.in_channels == LATENT_CHANNELS_512:
            published = INTERVAL_512
        solver, steps = "dpm-solver", SOLVER_STEPS
        if "num_sampling_steps" in config or "sampling_algo" in config:
            solver, steps = config.get("sampling_algo", "ddpm"), config.get("num_sampling_steps", "100")
        defaults = {
            "num_inference_steps": ITERATIONS,
            "num_diffusion_steps": check_sampler(solver, steps),
            "solver": solver,
            "guidance_scale": GUIDANCE,
            "guidance_schedule": "constant",
            "guidance_interval": [config.get("cfg_t_min", published[0]), config.get("cfg_t_max", published[1])],
        }
        return EMIGMPipeline(network, sampling_defaults=defaults)
