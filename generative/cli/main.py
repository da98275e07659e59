"""The ``generative`` command: finds the subcommand, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from generative.core.errors import RunError, UserError
from generative.core.full_disk import full_reason
from metrics.notes import say_warnings_plainly
from metrics.terminal import prepare, until_nobody_reads

COMMANDS = {
    "quickstart": "train a GAN, a DiT and a transformer on bundled digits, sample, score, and write a page (about 9 minutes)",
    "train": "train a generator from a configuration: generative train digits/dit",
    "sample": "sample images from a run or pipeline folder: generative sample runs/digits-dit --class-labels 0,1,2",
    "cascade": "put a diffusion run and an upsampler of its images into one pipeline folder: generative cascade BASE UPSAMPLER",
    "data": "store images once as shards that training reads, and check them: generative data prepare SRC OUT --resolution 256",
    "encode": "turn images into a cache of token ids or latents that training reads: generative encode RUN --config cifar10/var",
    "reconstruct": "images through a tokenizer or an autoencoder and back, side by side and with PSNR and SSIM",
    "selfimprove": "guide a diffusion away from a copy trained on its own samples: generative selfimprove runs/cifar10-dit",
    "dpt": "a generator and a classifier from a few labels a class: generative dpt digits/dit --labels-per-class 2",
    "edit": "draw a part of an image anew with a VAR: generative edit runs/cifar10-var --image cat.png --box 8,8,24,24",
    "scaling-law": "fit a power law of loss against size: generative scaling-law runs/var-d2 runs/var-d4 runs/var-d6",
    "truncation-curve": "table and plot of FID and Inception Score of a GAN at several truncations of its noise",
    "posthoc-ema": "an average of any length after training: generative posthoc-ema RUN --std 0.15, or --sweep 0.02..0.25",
    "rcg": "a representation diffusion and its generator as one pipeline: generative rcg RDM GENERATOR --output pipelines/rcg",
    "guidance-curve": "table and plot of distance, precision and recall of a diffusion under kinds and scales of guidance",
    "convert": "turn an official checkpoint into a pipeline folder: generative convert G_ema.pth --output pipelines/biggan",
    "export": "a run's pipeline as a slim folder with a model card: generative export RUN OUT --dtype float16",
    "push": "a run's pipeline on the Hugging Face hub, with a model card: generative push RUN user/repo",
    "report": "write a page with grids, curves and scores of runs: generative report runs/digits-dit runs/digits-sagan",
    "list": "list models, configurations, schedulers, data sets and metrics",
}

USAGE = """usage: generative COMMAND ...

Class-conditional image generation: GANs, diffusion and autoregressive models on one trainer and one sampler.

commands:
{commands}

`generative COMMAND --help` explains a command. Score images with `fid-score A B`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        Exit code: 0 done, 1 training diverged or its surroundings failed it, 2 wrong input, 128 + n stopped by signal n (a
        checkpoint was saved), 141 nobody reads the output any more.
    """
    if argv is None:
        prepare()
        say_warnings_plainly()
    return until_nobody_reads(lambda: run_command(list(sys.argv[1:] if argv is None else argv)))


def run_command(arguments: list[str]) -> int:
    """Find the subcommand and run it; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:<17} {text}" for name, text in COMMANDS.items())), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"triptych {version('triptych')}")
        return 0
    if arguments[0] not in COMMANDS:
        return fail(f"there is no command '{arguments[0]}'; choose one of {', '.join(COMMANDS)}")
    run: Callable[[list[str]], int] = import_module(f"generative.cli.{arguments[0].replace('-', '_')}").run
    try:
        code = run(arguments[1:])
        leave_process_group()
        return code
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, int | None) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise  # whoever reads the output may have left
        announce(error)
        explained = explain(error)
        if explained is None:
            raise
        return explained


def explain(error: Exception) -> int | None:
    """Print the sentence for an error that has one; returns the exit code, or None for a defect, which keeps its traceback."""
    wrong = UserError | FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError | ModuleNotFoundError
    if isinstance(error, wrong):
        return fail(str(error))
    if (full := full_reason(error)) is not None:
        place = f" while writing '{error.filename}'" if isinstance(error, OSError) and error.filename is not None else ""
        fail(f"{full[0]}{place}; {full[1]} and repeat the command")
        return 1
    if isinstance(error, OSError) and error.filename is not None:
        return fail(f"{error.strerror or error}: '{str(error.filename)[:200]}'")
    if isinstance(error, OSError) and error.errno is not None:
        fail(f"the system refuses a file or a connection ({error.strerror}); see to it, and repeat the command")
        return 1
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return fail("a file name holds a zero byte, which none may; correct it in the configuration or on the command line")
    if isinstance(error, RecursionError):
        return fail("a JSON file that the command reads nests far too deeply; it is damaged, or not one of ours")
    if isinstance(error, RuntimeError):
        from generative.core.observer import DivergenceError
        from generative.core.processes import explain_lost_process

        if isinstance(error, DivergenceError):
            fail(str(error))
            return 1
        stopped = error if isinstance(error, RunError) else explain_lost_process(error)
        if stopped is not None:
            fail(str(stopped), every_process=True)
            return 1
    return None


def announce(error: Exception) -> None:
    """Tell the other processes of a job, if there are any, why this one ends: they meet a broken connection only."""
    if "torch" in sys.modules:  # commands that compute nothing have not imported it
        from generative.core.processes import announce_failure

        announce_failure(" ".join(str(error).split()) or type(error).__name__)


def leave_process_group() -> None:
    """End the group of processes of torchrun, if this is one: a group that is there when the interpreter ends can abort it."""
    torch = sys.modules.get("torch")  # commands that compute nothing have not imported it
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fail(message: str, every_process: bool = False) -> int:
    """Print one sentence on standard error; returns exit code 2.

    Args:
        message: The sentence.
        every_process: What happened to each of several processes is its own; else the main one speaks for all that say the same.
    """
    rank, is_alone = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1") == "1"
    sentence = " ".join(message.split())
    if is_alone or (rank == "0" and not every_process):
        print(f"error: {sentence}", file=sys.stderr)
    elif every_process or not is_said_by_main(sentence):
        print(f"error: process {rank}: {sentence}", file=sys.stderr)
    return 2


def is_said_by_main(sentence: str) -> bool:
    """Whether the main process of the job ends with the same sentence; until they can talk, the first of each machine speaks."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK") != "0"
    from generative.core.processes import failure_of

    return failure_of(0) in (sentence, "")


if __name__ == "__main__":
    sys.exit(main())
