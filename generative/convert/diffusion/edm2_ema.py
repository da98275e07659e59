"""What trains and feeds the networks of NVlabs/edm2, by its options: averages, learning rate and latents, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin

from generative.convert.arguments import NUMBER, POSITIVE, Argument, Constructor, optional
from generative.convert.base import NetworkFreeSource
from generative.convert.diffusion.edm2_options import ENCODER, SOME_NUMBERS, latent_scaling
from generative.core.ema import HalfLifeEMA, PowerEMA
from generative.core.schedules import Constant, InverseSqrt, LRSchedule

if TYPE_CHECKING:
    pass

IMAGES_PER_MIMG = 1_000_000
CONSTRUCTOR = Constructor(
    "training",
    "NVlabs/edm2",
    {
        "batch": Argument(None, 2048, POSITIVE),
        # Of learning_rate_schedule: 0 batches are no decay, 0 Mimg no ramp-up.
        "ref_lr": Argument(None, 0.01, NUMBER),
        "ref_batches": Argument(None, 70_000, NUMBER),
        "rampup_Mimg": Argument(None, 10, NUMBER),
        # Of PowerFunctionEMA and TraditionalEMA.
        "stds": Argument(None, (0.05, 0.10), SOME_NUMBERS),
        "halflife_Mimg": Argument(None, float("inf"), NUMBER),
        "rampup_ratio": Argument(None, 0.09, optional(NUMBER)),
        **ENCODER,
    },
)


@dataclass(frozen=True)
class EDM2Training:
    """The official options as what stands for them here.

    Attributes:
        batch_size: Images of a step.
        learning_rate: Before the schedule.
        schedule: Factor on it.
        averages: Power-function averages.
        traditional_average: The one that these replace.
        latent_config: ``scaling_factor``, ``latents_mean`` and ``latents_std`` of the autoencoder's config.
    """

    batch_size: int
    learning_rate: float
    schedule: LRSchedule
    averages: list[PowerEMA]
    traditional_average: HalfLifeEMA
    latent_config: dict[str, Any]


def official_training(config: Mapping[str, Any]) -> EDM2Training:
    """Read the official options.

    Args:
        config: By name, see ``CONSTRUCTOR``.

    Raises:
        UserError: If one is unknown, of a wrong kind or out of range.
    """
    values = CONSTRUCTOR.values(config)
    warmup, reference = round(values["rampup_Mimg"] * IMAGES_PER_MIMG), round(values["ref_batches"] * values["batch"])
    return EDM2Training(
        batch_size=values["batch"],
        learning_rate=values["ref_lr"],
        schedule=InverseSqrt(reference, warmup) if reference > 0 else Constant(max(warmup, 0)),
        averages=[PowerEMA(std=std) for std in values["stds"]],
        traditional_average=HalfLifeEMA(values["halflife_Mimg"] * IMAGES_PER_MIMG, values["rampup_ratio"]),
        latent_config=latent_scaling({name: values[name] for name in ENCODER}),
    )


class EDM2EMASource(NetworkFreeSource):
    """How EDM2 trains, by its options: no file holds it, and it has no network."""

    name = "edm2_ema"
    repository = "NVlabs/edm2"
    owner = "a way to train"
    refusal = "edm2_ema is how EDM2 trains and makes no images itself; convert the checkpoint of a network"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Check the options; there is nothing to build.

        Raises:
            UserError: If an option is unknown or not of its kind.
        """
        official_training(config)
        return {}
