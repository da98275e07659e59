"""AM-GAN (arXiv 1703.02000): the losses of a discriminator that classifies, and the objective that plays them."""

from __future__ import annotations

from generative.gan.am_gan.losses import (
    CLASS_LOSSES,
    d_ac_gan_star,
    d_ac_gan_star_plus,
    d_am_gan,
    dynamic_targets,
    g_ac_gan_star,
    g_am_gan,
    g_label_gan,
)
from generative.gan.am_gan.objective import AMGANObjective

__all__ = [
    "CLASS_LOSSES",
    "AMGANObjective",
    "d_ac_gan_star",
    "d_ac_gan_star_plus",
    "d_am_gan",
    "dynamic_targets",
    "g_ac_gan_star",
    "g_am_gan",
    "g_label_gan",
]
