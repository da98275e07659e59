"""How the outputs of u-vit_pixel parity files, of pixel models, follow from their inputs."""

from __future__ import annotations

import u_vit_outputs

SOURCE = "u-vit"
outputs = u_vit_outputs.outputs
