"""How the outputs of biggan parity files follow from their inputs."""

from __future__ import annotations

from functools import partial

from biggan_outputs import outputs_by

from generative.convert.gan.biggan_pytorch import our_key

SOURCE = "biggan"
outputs = partial(outputs_by, our_key)
