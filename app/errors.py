"""Problems of the reader's making: one sentence on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

EXIT_NO_ANSWER = 1  # the question was valid, and the answer is "none", or lacks what failed
EXIT_BAD_INPUT = 2  # as Click has it
EXIT_INTERRUPTED = 130  # 128 + SIGINT
OUR_PACKAGES = ("app", "calibration", "hw_profiles", "runtime", "simulator")

# Typer holds Click's classes under private names (older versions: Click itself); BadParameter is public.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class InputError(ValueError):
    """Input that the command line or the dashboard cannot use; the message names it and the way out."""


def is_input_error(error: BaseException) -> bool:
    """True for the errors that our packages raise about input, and for files that cannot be reached.

    A bare ValueError is a defect of ours and keeps its traceback.
    """
    ours = type(error).__module__.partition(".")[0] in OUR_PACKAGES
    return isinstance(error, OSError) or (isinstance(error, ValueError) and ours)


def sentence(error: BaseException) -> str:
    """The error on one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        text = where + error.strerror
    else:
        text = str(error)
    return " ".join(text.split())


class OneSentenceGroup(TyperGroup):
    """Top of the command tree: turns every problem with the input into one sentence."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            sys.stdout.flush()
        except _ClickException as error:
            code = _report(_usage_sentence(error))
        except (typer.Abort, KeyboardInterrupt):
            code = EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): keep the flush at exit from complaining.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_NO_ANSWER
        except (ValueError, OSError) as error:
            if not is_input_error(error):
                raise
            code = _report(sentence(error))
        sys.exit(code if isinstance(code, int) else 0)


def _usage_sentence(error: Any) -> str:
    """Click's message, with the command whose help says more."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; see `{context.command_path} --help`" if context is not None else text


def _report(text: str) -> int:
    print(f"moeplan: {text}", file=sys.stderr)
    return EXIT_BAD_INPUT
