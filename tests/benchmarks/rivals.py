"""Run another tool's scores as its users run them, on weights given by path.

    python tests/benchmarks/rivals.py TOOL A B WEIGHTS [--batch-size 50] [--num-workers 2]

prints one line: the FID between the image folders A and B. Only what fetches weights is replaced. Tools that call
``scipy.linalg.sqrtm(..., disp=False)`` get that argument back where SciPy has dropped it (1.18).
"""

from __future__ import annotations

import argparse
import inspect
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """What a tool is given.

    Args:
        real: Folder of reference images.
        fake: Folder of samples.
        weights: State dict of the network in the published file's layout.
        batch_size: Images per forward pass; 1 lets tools that stack images take mixed sizes.
        num_workers: Processes that decode.
    """

    real: Path
    fake: Path
    weights: Path
    batch_size: int = 50
    num_workers: int = 2


@contextmanager
def disp_argument() -> Iterator[None]:
    """Let ``sqrtm(x, disp=False)`` return (root, error estimate) as before SciPy 1.18, and without the notice of its end."""
    import scipy.linalg

    root = scipy.linalg.sqrtm
    takes_disp = "disp" in inspect.signature(root).parameters

    def sqrtm(matrix: Any, disp: bool = True, blocksize: int = 64) -> Any:
        if not takes_disp:
            return root(matrix) if disp else (root(matrix), 0.0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            return root(matrix) if disp else root(matrix, disp=False)

    with mock.patch.object(scipy.linalg, "sqrtm", sqrtm):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what the tools print beside their results."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _local_weights(weights: Path) -> Any:
    from pytorch_fid import inception

    return mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))


def pytorch_fid(inputs: Inputs, dims: int = 2048) -> dict[str, float]:
    """pytorch-fid 0.3.0, ``python -m pytorch_fid A B --dims DIMS``."""
    from pytorch_fid import fid_score

    paths = [str(inputs.real), str(inputs.fake)]
    with _local_weights(inputs.weights), disp_argument(), quiet():
        value = fid_score.calculate_fid_given_paths(paths, inputs.batch_size, "cpu", dims, num_workers=inputs.num_workers)
    return {"fid": float(value)}


class NvidiaLayout(nn.Module):
    """The network of clean-fid's TorchScript file, as far as clean-fid calls it: ``layers`` from normalised pixels to pool3."""

    def __init__(self, weights: Path, traced: bool = True) -> None:
        super().__init__()
        from pytorch_fid import inception

        with _local_weights(weights):
            blocks = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval().blocks
        self.layers = nn.Sequential(*blocks)
        if traced:
            self.layers = torch.jit.trace(self.layers, torch.zeros(2, 3, 299, 299))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, 299, 299) to (B, 2048, 1, 1)."""
        return self.layers(images)


@contextmanager
def clean_fid_weights(weights: Path, traced: bool = True) -> Iterator[None]:
    """Let clean-fid load these weights for its TorchScript file."""
    from cleanfid import inception_torchscript

    with (
        mock.patch.object(inception_torchscript, "check_download_inception", lambda **_: None),
        mock.patch.object(inception_torchscript.torch.jit, "load", lambda path: NvidiaLayout(weights, traced)),
    ):
        yield


def clean_fid(inputs: Inputs, kid: bool = False, traced: bool = True) -> dict[str, float]:
    """clean-fid 0.1.35, ``fid.compute_fid(A, B)`` (and ``compute_kid``), mode "clean"."""
    from cleanfid import fid

    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "num_workers": inputs.num_workers,
        "batch_size": inputs.batch_size,
        "use_dataparallel": False,
        "verbose": False,
    }
    with clean_fid_weights(inputs.weights, traced), disp_argument(), quiet():
        scores = {"fid": float(fid.compute_fid(str(inputs.real), str(inputs.fake), **options))}
        if kid:
            scores["kid"] = float(fid.compute_kid(str(inputs.real), str(inputs.fake), **options))
    return scores


def torch_fidelity(inputs: Inputs, **options: Any) -> dict[str, float]:
    """torch-fidelity 0.4, ``fidelity --input1 B --input2 A --fid``, no cache; ``options`` are ``calculate_metrics``'s."""
    from torch_fidelity import calculate_metrics

    given = {"fid": True, "save_cpu_ram": inputs.num_workers == 0, **options}
    with quiet():
        result: dict[str, float] = calculate_metrics(
            input1=str(inputs.fake),
            input2=str(inputs.real),
            cuda=False,
            cache=False,
            verbose=False,
            batch_size=inputs.batch_size,
            feature_extractor_weights_path=str(inputs.weights),
            **given,
        )
    return {**result, "fid": result.get("frechet_inception_distance", float("nan"))}


#: Name -> function. torch-fidelity chooses its number of decoding processes itself (four on two cores).
RIVALS = {"pytorch-fid": pytorch_fid, "clean-fid": clean_fid, "torch-fidelity": torch_fidelity}


def main() -> None:
    """Print the FID that one tool finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=list(RIVALS))
    parser.add_argument("real", type=Path)
    parser.add_argument("fake", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    inputs = Inputs(args.real, args.fake, args.weights, args.batch_size, args.num_workers)
    sys.stdout.write(f"{RIVALS[args.tool](inputs)['fid']:.9f}\n")


if __name__ == "__main__":
    main()
