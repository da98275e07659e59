"""`fid-score`: score images against images or statistics. This module only parses; nothing heavy is imported before that."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from metrics import registry

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it.

_DESCRIPTION = """\
Score generated images B against reference images A, and print the number with its protocol.

A and B are image folders (searched recursively), .zip, .parquet or .npz files of images (arr_0, uint8
(N, H, W, 3)), or .npz statistics (mu, sigma) as pytorch-fid writes them. The Frechet distance is symmetric;
precision, recall and the Inception Score are not: A is the reference, B the samples."""

_EPILOG = """\
examples:
  fid-score real/ samples/                            FID under the protocol of clean-fid
  fid-score real/ samples/ --protocol pytorch-fid     the number that `python -m pytorch_fid` gives
  fid-score real/ samples/ --metrics fid,is,kid,cmmd  several at once, one pass per network
  fid-score --save-stats real/ real.npz               keep the reference ...
  fid-score real.npz samples/                         ... and use it
  fid-score real/ samples/ --json=scores.json         machine-readable, with the protocol
  fid-score real/ samples/ --extractor efficientnet-lite0 --input-size 96
                                                      a Frechet distance (not FID) without any download

weights: Inception-v3 (91 MB) and CLIP (891 MB) are downloaded once, verified, and kept in $TRIPTYCH_CACHE
(default ~/.cache/triptych). Offline, name the file: --weights PATH, or --weights clip-vit-l-14-336=PATH for
the second network.

Statistics written by --save-stats record their protocol; scoring against those of another is an error."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message} (fid-score --help shows how)\n")
        raise SystemExit(EXIT_USER_ERROR)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _non_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `fid-score`."""
    parser = _Parser(
        prog="fid-score",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", nargs=2, metavar="PATH", help="reference A and samples B (with --save-stats: images, output)")
    what = parser.add_argument_group("what to score")
    what.add_argument(
        "--metrics",
        metavar="LIST",
        default="fid",
        help=f"comma-separated: {', '.join([*registry.METRIC_ALIASES, *registry.METRICS])} (default: fid)",
    )
    what.add_argument(
        "--protocol",
        choices=list(registry.PROTOCOLS),
        default="clean",
        help="whose resize and normalisation (default: clean)",
    )
    what.add_argument(
        "--extractor",
        choices=list(registry.EXTRACTORS),
        default="inception-v3",
        help="feature network (default: inception-v3)",
    )
    what.add_argument(
        "--input-size",
        type=_positive,
        metavar="PX",
        help="side that images are brought to, if the network lets you",
    )
    what.add_argument(
        "--dims",
        type=int,
        choices=list(registry.FEATURE_BY_DIMS),
        help="Inception-v3 feature by its dimension (default: 2048)",
    )
    what.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="weight file of the network (NAME: of that network)",
    )
    what.add_argument(
        "--save-stats",
        action="store_true",
        help="write the statistics of the first path to the second, an .npz",
    )
    what.add_argument(
        "--num-samples",
        type=_positive,
        metavar="N",
        help="images to sample, where a path is a saved pipeline",
    )
    what.add_argument("--seed", type=_non_negative, help="seed of those samples")
    how = parser.add_argument_group("how to run")
    how.add_argument("--batch-size", type=_positive, default=50, metavar="N", help="images per forward pass (default: 50)")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:0, mps (default: cuda if there is one, else cpu)")
    how.add_argument("--num-workers", type=_non_negative, metavar="N", help="decoding threads (default: min(8, CPUs))")
    how.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print JSON instead of the table, or write it to FILE beside the table (--json=FILE)",
    )
    how.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `fid-score`.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        0 for a score, 2 for a mistake in the input (told in one sentence on stderr), 130 when interrupted.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse exits for --help and for errors.
        return int(stop.code or 0)
    from metrics.scoring import run

    try:
        run(args)
    except (ValueError, TypeError, OSError) as error:
        # OSError texts of Python carry "[Errno 28]"; ours are sentences already.
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        sys.stderr.write(f"error: {' '.join(text.split())}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
