"""How the outputs of biggan-deep parity files follow from their inputs."""

from __future__ import annotations

from functools import partial

from biggan_outputs import outputs_by

from generative.convert.gan.biggan_deep import our_key

SOURCE = "biggan-deep"
outputs = partial(outputs_by, our_key)
