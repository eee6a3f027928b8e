"""The command line: one verb, one file; errors are one sentence and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from lineas.errors import first_line

app = typer.Typer(
    name="lineas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Steer generative models by small, sparse maps on their activations, learned from a handful of examples.",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 with one sentence on stderr, 130 interrupted."""
    from lineas.cli import (
        calibrate,
        compose,
        demo,
        evaluate,
        export,
        fold,
        gate,
        generate,
        learn,
        lm_eval,
        paint,
        report,
        serve,
        show,
        sweep,
    )
    from lineas.errors import LineasError

    _quiet()
    verbs = (
        learn.learn, generate.generate, paint.paint, show.show, evaluate.evaluate, compose.compose, sweep.sweep,
        calibrate.calibrate, gate.gate, report.report, fold.fold, export.export, demo.demo,
    )  # fmt: skip
    for verb in verbs:
        if verb.__name__ not in {command.name for command in app.registered_commands}:
            app.command(verb.__name__)(verb)
    given = sys.argv[1:] if arguments is None else arguments
    if "serve" not in {command.name for command in app.registered_commands}:
        app.command("serve", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(serve.serve)
    if "lm-eval" not in {command.name for command in app.registered_commands}:
        app.command("lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": []})(
            lm_eval.lm_eval
        )
    try:
        code = app(given if given[:1] == ["lm-eval"] else _spread(given), standalone_mode=False)
    except LineasError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        Console(stderr=True).print("interrupted, nothing was written.")
        sys.exit(130)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            _fail(f"no space left on the disk{place}; nothing was written, free some and run the command again.")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            _fail(f"no permission to write or read{place}; choose another folder.")
        _fail(f"the system refused: {error.strerror or error}{place}.")
    except Exception as error:
        in_words = getattr(error, "format_message", None)  # wrong usage: typer brings its own copy of click or click's
        if in_words is None:
            _tell_of_bug(error)
        if not in_words():  # no arguments: the help was shown
            sys.exit(2)
        _fail(f"{in_words().rstrip('.')}; see lineas --help.")
    else:
        if isinstance(code, int) and code:  # typer.Exit
            sys.exit(code)


def _spread(arguments: list[str]) -> list[str]:
    """`--strength 0 1` as `--strength 0 --strength 1`, for the options of a command that take several values."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    options = commands[arguments[0]].params if arguments and arguments[0] in commands else []
    several = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
    out: list[str] = []
    option, values = "", 0
    for argument in arguments:
        is_option = argument.startswith("-") and not _is_number(argument)
        if not is_option and option in several and values > 0:
            out.append(option)
        if is_option:
            option, values = argument, 0
        else:
            values += 1
        out.append(argument)
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fail(sentence: str) -> None:
    if _debugging():
        traceback.print_exc()
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_plain(sentence)}")
    sys.exit(2)


def _tell_of_bug(error: Exception) -> NoReturn:
    """Say of what is none of ours to raise where it happened and what to do with it, and exit with 1."""
    if _debugging():
        traceback.print_exception(error)
        sys.exit(1)
    if isinstance(error, MemoryError) or any(said in str(error) for said in ("out of memory", "allocate memory")):
        _fail(f"there is not enough memory ({first_line(error)}); give fewer or shorter texts, or a smaller batch.")
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parents[1])]
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "an unknown place"
    sentence = (
        f"this is a bug of lineas ({type(error).__name__}: {first_line(error)}, in {at}); please report it to the "
        "project, with the command; LINEAS_DEBUG=1 shows the traceback."
    )
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_plain(sentence)}")
    sys.exit(1)


def _debugging() -> bool:
    return os.environ.get("LINEAS_DEBUG", "0") not in ("", "0")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _quiet() -> None:
    """Warnings as one line each, the same sentence once; no progress bars of other libraries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    told: set[str] = set()

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and str(message) not in told:
            told.add(str(message))
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[yellow]warning:[/] {_plain(str(message))}")

    warnings.showwarning = show_warning  # type: ignore[assignment]
