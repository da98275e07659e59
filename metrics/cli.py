"""``fid-score``: score images against images or statistics. This module only parses; nothing heavy is imported before that."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from metrics import registry
from metrics.files.named_datasets import MODES, dataset_lines
from metrics.notes import say_warnings_plainly
from metrics.options import JSON_TO_STDOUT, MATCHED_CLASSES, PRECISIONS, ScoreOptions, read_options, reader
from metrics.terminal import prepare, until_nobody_reads

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it.

_DESCRIPTION = """\
Score generated images B against reference images A, and print the number with its protocol.

A and B are image folders (searched recursively, mixed sizes), .zip, .tar (WebDataset), .parquet, shards of
`generative data prepare`, .npz (arr_0, uint8 (N, H, W, 3)) or .npy files of images, saved pipelines or their names on
the Hugging Face hub, user/repo (B is sampled while it is scored), or statistics: .npz of ours, pytorch-fid,
clean-fid, EDM or ADM, .pkl of EDM2, .npy embeddings. More paths are more sample sets: they share the reference, and
make one table. A distance is symmetric; precision, recall and the Inception Score are not: A is the reference, B the
samples."""

_EXAMPLES = """\
examples:
  fid-score real/ samples/                            FID under the protocol of clean-fid
  fid-score real/ samples/ --protocol pytorch-fid     the number that `python -m pytorch_fid` gives
  fid-score VIRTUAL_imagenet256_labeled.npz samples.npz --protocol adm
                                                      IS, FID, sFID, precision, recall as ADM's evaluator
  fid-score real/ samples/ --metrics fid,fd-dinov2,cmmd   each image decoded once, one pass per network
  fid-score --save-stats real/ real.npz --metrics fid,kid  keep the reference ...
  fid-score real.npz samples/ --metrics fid,kid       ... and use it
  fid-score real.npz runs/x/step-* --csv s.csv --plot s.png   a curve over checkpoints
  fid-score real/ runs/digits-dit --num-samples 50000     sample and score, nothing written
  fid-score samples/ --metrics is                     a score that needs no reference
  fid-score samples/ --dataset cifar10 --dataset-split train
                                                      against the statistics that clean-fid publishes
  fid-score real/ samples/ --extractor efficientnet-lite0 --input-size 96
                                                      a Frechet distance (not FID) without any download
  fid-score --train-extractor train/ test/ judge.safetensors --extractor resnet9
  fid-score test/ samples/ --extractor resnet9 --weights judge.safetensors --metrics fid,am
                                                      a network trained on one's own data, and scores on it
  fid-score --input1 samples/ --input2 real/ --fid --isc  as torch-fidelity's `fidelity` (its protocol, too)
  torchrun --nproc-per-node 8 -m metrics.cli real/ samples/  on eight GPUs, the same number (to 5e-7)"""

_NOTES = """\
weights: Inception-v3 (91 MB), CLIP, DINOv2 and others are downloaded once, verified, and kept in $TRIPTYCH_CACHE
(default ~/.cache/triptych). Offline, name the file: --weights PATH, or --weights clip-vit-l-14-336=PATH for
another network of the run.

features are kept there too (the least recently used go beyond 20 GB), so that a run that was interrupted goes on
where it stopped; --no-cache keeps none.

statistics written by --save-stats record their protocol; scoring against those of another is an error.

exit codes: 0 a score, 2 wrong input (one sentence says what), 130 interrupted, 141 output closed (`| head`)."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message} (fid-score --help shows how)\n")
        raise SystemExit(EXIT_USER_ERROR)


def _read(name: str) -> Callable[[str], Any]:
    """Return a flag's type: what reads that option, with its sentence where it refuses a text."""
    read = reader(name)

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _epilog() -> str:
    width = max(len(name) for name in registry.SCORES)
    scores = "\n".join(f"  {name:<{width}}  {score.help}" for name, score in registry.SCORES.items())
    width = max(len(name) for name in registry.PROTOCOLS)
    protocols = "\n".join(
        f"  {name:<{width}}  {protocol.origin}; resize {protocol.resizer}; {', '.join(protocol.scores)}"
        for name, protocol in registry.PROTOCOLS.items()
    )
    datasets = "\n".join(dataset_lines())
    return (
        f"metrics:\n{scores}\n\nprotocols:\n{protocols}\n\ndata sets that clean-fid publishes (--dataset):\n{datasets}\n\n"
        f"{_EXAMPLES}\n\n{_NOTES}"
    )


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps names whole that have hyphens, such as those of networks: they are there to be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def build_parser() -> _Parser:
    """Return the parser of ``fid-score``."""
    parser = _Parser(
        prog="fid-score",
        usage="fid-score A B [B ...] [options]",
        description=_DESCRIPTION,
        epilog=_epilog(),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", nargs="*", metavar="PATH", help="reference A, then sample sets B ... (with --save-stats: images, then output)"
    )
    _add_what(parser.add_argument_group("what to score"))
    _add_dataset(parser.add_argument_group("a reference by name"))
    _add_how_metrics(parser.add_argument_group("settings of metrics"))
    _add_analyses(parser.add_argument_group("analyses"))
    _add_output(parser.add_argument_group("output"))
    _add_how(parser.add_argument_group("how to run"))
    _add_spellings(parser.add_argument_group("other tools' spellings"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--metrics", metavar="LIST", help="comma-separated, from the list below (default: fid, or what the protocol names)"
    )
    group.add_argument(
        "--protocol",
        choices=list(registry.PROTOCOLS),
        help="whose resize, normalisation and rules (default: clean; tensorflow with --input1)",
    )
    group.add_argument(
        "--extractor",
        "--feature-extractor",
        type=_read("extractor"),
        metavar="NAME",
        help=f"feature network: {', '.join(registry.EXTRACTORS)}, or your own as FILE.py:CLASS (default: inception-v3)",
    )
    group.add_argument(
        "--input-size", type=_read("input_size"), metavar="PX", help="side that images are brought to, if the network lets you"
    )
    group.add_argument(
        "--dims", type=int, choices=list(registry.FEATURE_BY_DIMS), help="Inception-v3 feature by its dimension (default: 2048)"
    )
    group.add_argument(
        "--weights",
        "--feature-extractor-weights-path",
        action="append",
        metavar="[NAME=]PATH",
        help="weight file of the network (NAME: of that network)",
    )
    group.add_argument("--save-stats", action="store_true", help="write the statistics of the first path to the second, an .npz")
    group.add_argument(
        "--train-extractor",
        action="store_true",
        help="train --extractor resnet9 on the labelled images of the first path (tested on those of the second, where there are "
        "three) and write its weights to the last, a .safetensors",
    )
    group.add_argument("--train-epochs", type=_read("train_epochs"), metavar="N", help="passes over them (default: 10)")
    group.add_argument(
        "--num-samples",
        "--num",
        type=_read("num_samples"),
        metavar="N",
        help="images to sample, where a path is a saved pipeline",
    )
    group.add_argument("--seed", type=_read("seed"), help="seed of those samples")
    group.add_argument(
        "--sample-precision",
        choices=list(PRECISIONS),
        help="in which the pipeline's networks sample (default: float32); less is faster, and makes slightly other images",
    )


def _add_dataset(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset",
        metavar="NAME",
        help="reference statistics of clean-fid: of a data set in the list below, or custom ones; all paths are samples then",
    )
    group.add_argument("--dataset-split", metavar="NAME", help="its part (default: train where there is one; custom)")
    group.add_argument(
        "--dataset-res", type=_read("dataset_res"), metavar="PX", help="side of its images, where there are several"
    )
    group.add_argument(
        "--dataset-root",
        metavar="DIR",
        help="folder, .zip or .tar of such files (default: clean-fid's own folder, downloaded into once)",
    )


def _add_how_metrics(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--isc-splits", type=_read("isc_splits"), metavar="N", help="splits of the Inception Score (default: 10)")
    group.add_argument("--no-samples-shuffle", action="store_true", help="Inception Score in file order, as the official script")
    group.add_argument("--kid-subsets", type=_read("kid_subsets"), metavar="N", help="subsets of KID (default: 100)")
    group.add_argument("--kid-subset-size", type=_read("kid_subset_size"), metavar="N", help="images per subset (default: 1000)")
    group.add_argument(
        "--prc-neighborhood",
        "--nearest-k",
        type=_read("prc_neighborhood"),
        metavar="K",
        help="neighbour that sets a ball's radius (default: 3)",
    )
    group.add_argument(
        "--rng-seed",
        type=_read("rng_seed"),
        metavar="SEED",
        help="seed of KID's subsets, the IS shuffle, MIND, FID-infinity, class matching",
    )


def _add_analyses(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--match-classes",
        choices=list(MATCHED_CLASSES),
        help="draw samples so that their ImageNet classes are distributed as the reference's, and score those (arXiv:2203.06026)",
    )
    group.add_argument("--match-num", type=_read("match_num"), metavar="N", help="samples to draw (default: a fifth)")
    group.add_argument("--sensitivity-map", metavar="FILE.png", help="draw what in the first samples FID reacts to")
    group.add_argument(
        "--cas", metavar="ARCH", help="train a torchvision classifier on the samples, test it on the reference (labels needed)"
    )
    group.add_argument("--cas-size", type=_read("cas_size"), metavar="PX", help="its input size (default: 224)")
    group.add_argument("--cas-epochs", type=_read("cas_epochs"), metavar="N", help="passes over the samples (default: 90)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-j",
        "--json",
        nargs="?",
        const=JSON_TO_STDOUT,
        metavar="FILE.json",
        help="print JSON instead of the table, or write it to FILE.json beside the table",
    )
    group.add_argument("--csv", metavar="FILE.csv", help="also write one row per sample set")
    group.add_argument(
        "--plot",
        metavar="FILE.png",
        help="also draw the scores: against the training step where every sample set has one (recorded, or named as "
        "in step-1000, checkpoint-1000), else by sample set in the order given",
    )
    group.add_argument("--quiet", "--silent", action="store_true", help="no progress bar")


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-b", "--batch-size", type=_read("batch_size"), metavar="N", help="images per forward pass (default: 50)")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:0, mps (default: cuda if there is one, else cpu)")
    group.add_argument("--num-workers", type=_read("num_workers"), metavar="N", help="decoding threads (default: min(8, CPUs))")
    group.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="of the network; less than float32 is faster on some hardware, moves the score, and says by how much",
    )
    group.add_argument("--skip-corrupt", action="store_true", help="leave unreadable images out and say which")
    group.add_argument("--no-cache", action="store_true", help="keep no features")
    group.add_argument("--cache-root", metavar="DIR", help="where to keep features (default: features in $TRIPTYCH_CACHE)")


def _add_spellings(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--input1", "--images", metavar="PATH", help="samples (torch-fidelity; EDM's fid.py)")
    group.add_argument("--input2", "--ref", metavar="PATH", help="reference")
    for short, flag, text in (
        ("-i", "--isc", "Inception Score"),
        ("-f", "--fid", "FID"),
        ("-k", "--kid", "KID"),
        ("-r", "--prc", "precision and recall"),
        ("-m", "--mind", "MIND"),
    ):
        group.add_argument(short, flag, action="store_true", help=text)
    group.add_argument("--mode", choices=list(MODES), help=f"as --protocol {', '.join(MODES.values())} (clean-fid)")
    group.add_argument("-g", "--gpu", metavar="ID", help="as --device cuda:ID")
    group.add_argument("-c", "--cpu", action="store_true", help="as --device cpu")
    group.add_argument("--samples-find-deep", action="store_true", help="folders are always searched recursively")
    group.add_argument("--save-cpu-ram", action="store_true", help="no N x N matrix is ever held")
    group.add_argument("--prc-batch-size", type=_read("prc_batch_size"), metavar="N", help="tiles have a fixed size")


def parse_arguments(argv: Sequence[str]) -> ScoreOptions:
    """Return the options that a command line names.

    Args:
        argv: Arguments without the program's name.

    Raises:
        SystemExit: After --help, or after one sentence on stderr.
    """
    parser = build_parser()
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)  # argparse forgets it where paths and flags are intermixed.
    values = vars(parser.parse_intermixed_args(_with_explicit_json(words[:end])))
    paths = [*values.pop("path"), *words[end + 1 :]]
    try:
        return read_options(paths, len(paths) > 1, values)
    except ValueError as error:
        parser.error(str(error).removesuffix("."))


def _with_explicit_json(argv: Sequence[str]) -> list[str]:
    """Let ``--json A B`` print: only what ends with .json right behind the flag is its file."""
    return [
        f"--json={JSON_TO_STDOUT}" if word in ("-j", "--json") and not next_word.endswith(".json") else word
        for word, next_word in pairwise([*argv, ""])
    ]


def main(argv: list[str] | None = None) -> int:
    """Run ``fid-score``.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        0 for a score, 2 for a mistake in the input (told in one sentence on stderr), 130 when interrupted, 141 when nobody
        reads the output any more.
    """
    return until_nobody_reads(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    try:
        options = parse_arguments(argv)
    except SystemExit as stop:  # argparse exits for --help and for errors.
        return int(stop.code or 0)
    try:
        # Inside, so that an interruption while torch is being imported is told like any other.
        from metrics.allocator import keep_freed_memory

        keep_freed_memory()
        from metrics.scoring import run

        run(options)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        _say(error)
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sys.stderr.write("error: out of memory: choose a smaller --batch-size, --input-size or --cas-size, or fewer images\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        kept = (
            "nothing was written"
            if options.train_extractor
            else "run the same command again and it goes on from the features kept so far"
        )
        sys.stderr.write(f"interrupted: {kept}\n")
        return EXIT_INTERRUPTED
    return EXIT_OK


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed; torch says it of a CPU in words only."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _say(error: Exception) -> None:
    """Print an error as one sentence; one that all processes know of is the main one's to print."""
    from metrics.distributed import SharedError, describe_error

    if not isinstance(error, SharedError) or os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"error: {describe_error(error)}\n")


def entry() -> NoReturn:
    """Run as a program: leave at once when done, instead of unloading torch for half a second."""
    prepare()
    say_warnings_plainly()
    os._exit(main())


if __name__ == "__main__":
    entry()
