"""Random weights for Inception-v3 in the published file's layout, so that tools can be compared without any download.

    python tests/benchmarks/seeded_weights.py WEIGHTS.pth

Convolutions have He's scale: features of different images then differ as those of a trained network do. (torchvision's own
initialisation lets activations die out, every image has the same features, and any two sets have FID 0.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

_NUM_CLASSES = 1008  # Of the TensorFlow graph of 2015-12-05.


def seeded_inception_state(seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict with He-scaled convolutions and mild batch norms; the same for the same seed."""
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=_NUM_CLASSES, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = 0.75 + 0.5 * torch.rand(value.shape, generator=generator)
        elif value.ndim >= 2:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) * (2.0 / fan_in) ** 0.5
        else:
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def write_seeded_weights(path: Path, seed: int = 0) -> Path:
    """Write the state dict to a .pth file."""
    torch.save(seeded_inception_state(seed), path)
    return path


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_seeded_weights(args.path, args.seed)


if __name__ == "__main__":
    main()
