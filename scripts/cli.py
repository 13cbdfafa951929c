"""What every script shares: parse a dataclass, and end with a sentence instead of a traceback."""

import sys
import typing
from collections.abc import Callable
from typing import TypeVar

import tyro
from rich.console import Console

from amc.errors import UserError

Options = TypeVar("Options")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[Options], None]) -> None:
    """Parse the command line into the dataclass that `main` takes, call it, and leave the process.

    Exit codes: 0 done, 2 bad input (also an unknown option), 130 interrupted by Ctrl-C.

    A script that catches the interruption may raise it again with more to say: `KeyboardInterrupt("; ...")`.

    Args:
        main: Takes one annotated argument, a dataclass with a sentence under each field.
    """
    sys.exit(exit_code(main, sys.argv[1:]))


def exit_code(main: Callable[[Options], None], arguments: list[str]) -> int:
    """What `run` would leave the process with for these arguments.

    Raises:
        SystemExit: by tyro, after it has printed its help or its own message about an unknown option.
    """
    (options_type,) = (kind for name, kind in typing.get_type_hints(main).items() if name != "return")
    try:
        # Options of nested dataclasses are given by their own names: --evaluations, not --search.evaluations.
        flat = (tyro.conf.OmitArgPrefixes,)
        main(tyro.cli(options_type, args=arguments, description=main.__doc__, config=flat))
    except UserError as error:
        # One line, whatever a library's message inside it looks like.
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interruption:
        print(f"interrupted{interruption}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def console() -> Console:
    """Where progress is drawn: standard error, so that standard output holds results only."""
    return Console(stderr=True)
