"""FID of two folders: ``fid-score`` against pytorch-fid, clean-fid and torch-fidelity, each a process of its own, in turn.

    python tests/benchmarks/fid_score.py                                  # 500 crops of 256 px on each side; 5 to 10 minutes
    python tests/benchmarks/fid_score.py --parquet images.parquet         # real images in Hugging Face's layout
    python tests/benchmarks/fid_score.py --images 8                       # does it work at all

All tools get the same PNG files and the same seeded weights, and compute in float32 on the CPU with as many threads as torch
takes. Timed is the whole process: start of Python, imports, weights, decoding, network, distance. Ours keeps no features.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from photographs import BLUR, crops, parquet_images, write_pngs
from PIL import Image
from seeded_weights import write_seeded_weights

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
#: Other tool -> our protocol that is the same mathematics.
_PAIRS = {"clean-fid": "clean", "pytorch-fid": "pytorch-fid", "torch-fidelity": "tensorflow"}


@dataclass
class Timed:
    """What a tool's runs gave.

    Args:
        seconds: Of each run.
        fid: Of the last.
    """

    seconds: list[float] = field(default_factory=list)
    fid: float = float("nan")

    @property
    def median(self) -> float:
        """The middle of the times."""
        return statistics.median(self.seconds)


def _run(command: Sequence[str]) -> tuple[float, str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout


def run_rival(tool: str, real: Path, fake: Path, weights: Path, result: Timed) -> None:
    """Time one run of another tool."""
    seconds, out = _run([sys.executable, str(_HERE / "rivals.py"), tool, str(real), str(fake), str(weights)])
    result.seconds.append(seconds)
    result.fid = float(out.split()[-1])


def run_ours(protocol: str, precision: str, real: Path, fake: Path, weights: Path, result: Timed) -> None:
    """Time one run of ``fid-score``."""
    options = ["--protocol", protocol, "--precision", precision, "--weights", str(weights), "--device", "cpu"]
    command = [sys.executable, "-m", "metrics.cli", str(real), str(fake), *options, "--no-cache", "--quiet", "--json"]
    seconds, out = _run(command)
    result.seconds.append(seconds)
    result.fid = float(json.loads(out)["scores"]["fid"])


def make_folders(root: Path, count: int, size: int, parquet: Path | None) -> tuple[Path, Path]:
    """Write two folders of PNG files: two parts of the parquet, or crops of photographs, the second part of them blurred."""
    if parquet is not None:
        sets: list[Iterator[Image.Image]] = [parquet_images(parquet, count, part * count, size) for part in (0, 1)]
    else:
        sets = [crops(count, seed, [(size, size)], blur) for seed, blur in ((0, 0.0), (1, BLUR))]
    real, fake = (write_pngs(root / name, images) for name, images in zip(("real", "fake"), sets, strict=True))
    return real, fake


def compare(args: argparse.Namespace, root: Path) -> None:
    """Run all and print the table."""
    real, fake = make_folders(root, args.images, args.size, args.parquet)
    weights = write_seeded_weights(root / "seeded-inception.pth")
    tools = [tool for tool in _PAIRS if tool in args.tools]
    theirs = {tool: Timed() for tool in tools}
    ours = {tool: Timed() for tool in tools}
    for _ in range(args.repeats):  # In turn, so that a machine that slows down slows all of them.
        for tool in tools:
            run_rival(tool, real, fake, weights, theirs[tool])
            run_ours(_PAIRS[tool], args.precision, real, fake, weights, ours[tool])
    what = args.parquet.name if args.parquet else "crops of scikit-learn's photographs"
    machine = f"{os.cpu_count()} CPU cores, ours in {args.precision}, median of {args.repeats}"
    print(f"2 x {args.images} PNG of {args.size} px ({what}), {machine}")
    print(f"{'tool':<16}{'seconds':>9}{'fid-score':>11}{'ratio':>8}{'FID':>14}{'our FID':>14}{'difference':>12}")
    for tool in tools:
        first, second = theirs[tool], ours[tool]
        difference = second.fid / first.fid - 1
        print(
            f"{tool:<16}{first.median:>9.2f}{second.median:>11.2f}{first.median / second.median:>7.2f}x"
            f"{first.fid:>14.6f}{second.fid:>14.6f}{difference:>12.1e}"
        )


def main() -> None:
    """Parse the command line, and work in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, metavar="N", help="images on each side (default: 500)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="their side (default: 256)")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="take images from its column `image` instead")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each tool (default: 1)")
    parser.add_argument("--tools", nargs="+", choices=list(_PAIRS), default=list(_PAIRS))
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of ours (default: float32)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fid-score-") as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
