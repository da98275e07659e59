"""How the outputs of u-vit parity files, of latent models, follow from their inputs."""

from __future__ import annotations

import u_vit_outputs

SOURCE = "u-vit"
outputs = u_vit_outputs.outputs
