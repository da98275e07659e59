"""Peak memory of ``fid-score`` against the number of images: a Frechet distance must not need more for more.

    python tests/benchmarks/memory.py                  # 2,000 and 16,000 images of 32 px on each side; some minutes

Noise images in two npz files, EfficientNet-Lite0 at 32 px (its weights are packaged), no feature cache.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_KIBIBYTES_PER_MEBIBYTE = 1024
_SIZE = 32  # Pixels.


def write_noise(path: Path, count: int, seed: int) -> Path:
    """Write ``count`` images of noise as ``arr_0``."""
    np.savez(path, np.random.default_rng(seed).integers(0, 256, (count, _SIZE, _SIZE, 3), dtype=np.uint8))
    return path


def peak_of_run(first: Path, second: Path) -> float:
    """Score two files in a process of its own; return its peak resident memory in MiB."""
    options = ["--extractor", "efficientnet-lite0", "--input-size", str(_SIZE), "--no-cache", "--quiet", "--device", "cpu"]
    code = "import sys; from metrics.cli import entry; entry()"
    subprocess.run([sys.executable, "-c", code, str(first), str(second), *options], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / _KIBIBYTES_PER_MEBIBYTE


def main() -> None:
    """Print one line per count; counts go up, so the largest child so far is the one just run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 16000], help="images on each side")
    args = parser.parse_args()
    for count in sorted(args.counts):
        with tempfile.TemporaryDirectory() as folder:
            pair = [write_noise(Path(folder) / f"{seed}.npz", count, seed) for seed in (0, 1)]
            sys.stdout.write(f"{count:8d} images on each side: peak {peak_of_run(*pair):8.0f} MiB\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
