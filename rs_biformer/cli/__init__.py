"""The `rs-biformer` command: one file per sub-command, each nothing but options and one call.

Only here are this package's errors caught: one line on standard error and exit code 2. Command modules import what is
heavy (torch, rasterio) inside `run`, so that `--help` answers at once.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from rs_biformer.cli.console import (
    PROGRESS,
    Terminated,
    complain,
    interruptible,
    prepare,
    show,
    show_progress_as,
    visible,
)
from rs_biformer.errors import ConfigError, RsBiformerError
from rs_biformer.files import NO_ROOM
from rs_biformer.machine import limit_threads

COMMANDS = (
    "demo",
    "ndsm",
    "tile",
    "train",
    "evaluate",
    "predict",
    "view",
    "vectorize",
    "summarise",
    "suggest",
    "export",
    "convert",
    "push",
    "explain",
    "models",
    "info",
    "completion",
)
DESCRIPTION = "Semantic segmentation of large aerial and satellite rasters with hybrid CNN-BiFormer networks."


_MISSING = "the following arguments are required:"  # argparse's words

_MAY_BE_EMPTY = ("--title", "--label-field")  # whose value may be no text: of a page, of a layer of one class

_SEVERAL_MODELS = ("predict", "suggest")  # commands with --checkpoint A B


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors: what is wrong and where the help is, without the usage block."""

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING) and not message.startswith(f"{_MISSING} -"):
            message += " (before the options: one that takes several values takes what follows it, too)"
        self.exit(2, f"{self.prog}: {visible(message)}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """argparse's own, but for the version, which is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from rs_biformer import __version__

        show(f"rs-biformer {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse parser."""
    parser = _Parser(
        prog="rs-biformer",
        description=DESCRIPTION,
        epilog="start with: rs-biformer demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    parser.add_argument(
        "--progress",
        choices=PROGRESS,
        default="bar",
        help="before the command: on standard error a bar, or lines of JSON for a program that runs it (bar)",
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = _command(name)
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.

    141 when whoever reads the output stops reading.
    """
    name = ""
    try:
        with interruptible(str):
            limit_threads()
            prepare()
            module, args, words = _understood(sys.argv[1:] if argv is None else argv)
            name = args.command
            _require_text(words)
            if not getattr(module, "OWN_SIGNALS", False):
                module.run(args)
        if getattr(module, "OWN_SIGNALS", False):
            module.run(args)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _reader_is_gone():  # a connection broke, not the output
            return _fail(name, _describe(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RsBiformerError, OSError, UnicodeEncodeError, ModuleNotFoundError, MemoryError) as error:
        return _fail(name, _describe(error))
    except KeyboardInterrupt as stop:
        complain(": ".join([f"rs-biformer {name}".rstrip(), "interrupted", *map(str, stop.args)]))
        return 143 if isinstance(stop, Terminated) else 130
    return 0


def _understood(words: Sequence[str]) -> tuple[ModuleType, argparse.Namespace, Sequence[str]]:
    """The module of a command, its options, and the words that said so; what cannot be understood ends the process."""
    parser = build_parser()
    args, rest = parser.parse_known_args(_with_joined_numbers(words))
    module = _command(args.command)
    if rest and not getattr(module, "PASS_REST", False):
        option = visible(rest[0])
        parser.exit(2, f"rs-biformer {args.command}: unknown option {option}; see rs-biformer {args.command} --help\n")
    args.rest = rest
    show_progress_as(args.progress)
    return module, args, words


def _require_text(words: Sequence[str]) -> None:
    for before, word in zip(["rs-biformer", *words], words, strict=False):
        option, joined, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and (joined or not word) and option not in _MAY_BE_EMPTY:
            raise ConfigError(f"{option} is followed by nothing; is a variable of the shell not set?")
    if not all(map(str.isascii, words)):
        from rs_biformer.raster.paths import require_text

        for word in words:
            require_text(word)


def _with_joined_numbers(argv: Sequence[str]) -> list[str]:
    """Words that argparse would misread, so that it does not.

    `--nodata -3.4e38` is one word: a negative number with an exponent, or a list, would be taken for an option. And
    `predict --checkpoint A.ckpt B.onnx` names the option twice, since what follows several values would be a value too.
    """
    joined: list[str] = []
    listing = False
    for word in argv:
        if joined and joined[-1] == "--nodata":
            joined[-1] = f"--nodata={word}"
            continue
        listing = word == "--checkpoint" or (listing and (joined[-1] == "--checkpoint" or is_model(word)))
        if listing and word != "--checkpoint" and joined[-1] != "--checkpoint" and joined[0] in _SEVERAL_MODELS:
            joined.append("--checkpoint")
        joined.append(word)
    return joined


def is_model(word: str) -> bool:
    """Whether a word is the name of a model, and not of a scene."""
    return word.lower().endswith((".ckpt", ".safetensors", ".onnx")) or word.startswith("hf://")


def _command(name: str) -> ModuleType:
    return import_module(f"rs_biformer.cli.{name}")


def _reader_is_gone() -> bool:
    """Whether who reads the output, such as `head`, has had enough: then an empty line cannot be written either."""
    try:
        show(flush=True)
    except BrokenPipeError:
        return True
    return False


def _fail(command: str, message: str) -> int:
    complain(f"rs-biformer {command}: {message}")
    return 2


def _describe(error: Exception) -> str:
    """What is said of an error that somebody can do something about; others are raised again."""
    match error:
        case OSError():
            return _describe_system(error)
        case UnicodeEncodeError():  # the name of a file that was come upon in a folder
            return f"{error.object[:200]} is no UTF-8; rename what is called so"
        case ModuleNotFoundError():
            package = (error.name or "").partition(".")[0]
            if package in ("", "rs_biformer"):  # ours is whole, or there is a fault in it
                raise error
            return _describe_missing(package)
        case MemoryError():
            return f"this machine ran out of memory ({str(error) or 'no more is said'}); close other programs"
        case _:
            return str(error)


def _describe_missing(package: str) -> str:
    from rs_biformer.distribution import describe_missing

    return describe_missing(package)


def _describe_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in NO_ROOM:
        what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        return f"{where}{what}; free some space or choose another --out and run the same command again"
    return f"{where}{error.strerror or error}"
