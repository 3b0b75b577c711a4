"""The command line: parses arguments, prints, and chooses the exit code. All work is done by the library."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module

from .. import __version__
from ..errors import AlnumpyError
from .common import Command, UsageError, warn

MODULES = {  # the file of this folder that holds each command; only the file of the command that runs is imported
    "embed": "embed",
    "index": "gallery",
    "search": "search",
    "duplicates": "duplicates",
    "serve": "serve",
    "reduce": "gallery",
    "merge": "gallery",
    "export": "gallery",
    "remove": "gallery",
    "move": "gallery",
    "list": "gallery",
    "stats": "gallery",
    "eval": "evaluate",
    "info": "weights",
    "verify": "weights",
    "models": "weights",
    "convert": "convert",
    "kernels": "weights",
}


def build_parser(names: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    """The argument parser of all commands, or of some."""
    parser = argparse.ArgumentParser(
        prog="alnumpy",
        usage="alnumpy COMMAND ... [OPTIONS]",
        description="Find photos that look like a photo, and duplicates: image embeddings, offline and without torch.",
    )
    parser.add_argument("--version", action="version", version=f"alnumpy {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        command: Command = getattr(import_module(f".{MODULES[name]}", __name__), name.upper())
        added = commands.add_parser(
            command.name,
            prog=f"alnumpy {command.name}",
            usage=f"alnumpy {command.name} {command.takes} [OPTIONS]".replace("  ", " "),
            help=command.help,
            description=command.help,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(added)
        added.set_defaults(run=command.run, refuse=added.error)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 all well, 1 some input failed, 2 wrong usage.

    Raises errors that are not the input's fault, and with --debug all errors.
    """
    if sys.stderr is None:  # closed by the caller, as are the two below
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        warn("stdout is closed: there is nowhere to write the results to")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some locales lack letters
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged picture is one that cannot be decoded
    warnings.filterwarnings("default", "alnumpy: ")  # our own are for users, even under python -W error
    warnings.showwarning = lambda message, *_: warn(str(message).removeprefix("alnumpy: "))
    debug = False
    try:
        try:
            words = sys.argv[1:] if argv is None else argv
            named = next((word for word in words if not word.startswith("-")), "")
            parser = build_parser([named] if named in MODULES else MODULES)
            if not words:
                parser.print_help(sys.stderr)
                return 2
            args, unknown = parser.parse_known_args(words)
            if unknown:  # argparse itself would print the usage of all commands
                args.refuse(f"unrecognized arguments: {' '.join(unknown)}")
            debug = args.debug
            return args.run(args)
        finally:
            flush()
    except BrokenPipeError:  # the reader has stopped reading (| head -1)
        return 1
    except UsageError as error:
        warn(error)
        return 2
    except (AlnumpyError, OSError, MemoryError) as error:
        if debug:
            raise
        warn(explain(error))
        return 1


def flush() -> None:
    """Writes out stdout's buffer. Raises OSError if that is impossible, and then gives up the buffer."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from None


def explain(error: BaseException) -> str:
    """An error as one line that names the file."""
    if isinstance(error, MemoryError):
        return "out of memory; a smaller --size, --batch-size or --max-pixels needs less"
    if isinstance(error, OSError) and error.strerror:
        unnamed = "the current folder" if isinstance(error, FileNotFoundError) else "stdout"
        return f"{unnamed if error.filename is None else error.filename}: {error.strerror}"
    return str(error)
