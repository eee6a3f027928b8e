"""The command line: one verb, one file; errors are one sentence and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from functools import cache
from typing import Any

import typer

from lineas.checks import number
from lineas.cli.terminal import say_aside

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
        code = _command(len(app.registered_commands))(
            given if given[:1] == ["lm-eval"] else _spread(given), standalone_mode=False
        )
    except LineasError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        say_aside("interrupted, nothing was written.")
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
            raise
        if not in_words():  # no arguments: the help was shown
            sys.exit(2)
        verb = f" {given[0]}" if given[:1] and given[0] in {command.name for command in app.registered_commands} else ""
        _fail(f"{in_words().rstrip('.')}; see lineas{verb} --help.")
    else:
        if isinstance(code, int) and code:  # typer.Exit
            sys.exit(code)


@cache
def _command(verbs: int) -> Any:
    """The command line with so many verbs in it, built once."""
    return typer.main.get_command(app)


def _spread(arguments: list[str]) -> list[str]:
    """`--strength 0 1` as `--strength 0 --strength 1`, for the options of a command that take several values.

    What begins with a dash and is none of the command's options is a value there: a number, or a text.
    """
    commands = getattr(_command(len(app.registered_commands)), "commands", {})
    command = commands.get(arguments[0]) if arguments else None
    options = [] if command is None else command.params
    several = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    hands_on = command is not None and "ignore_unknown_options" in command.context_settings
    out: list[str] = []
    option, values = "", 0
    for argument in arguments:
        is_option = argument.startswith("-") and not _is_number(argument)
        if is_option and option in several and argument.partition("=")[0] not in known and not hands_on:
            is_option = argument.startswith("--") and " " not in argument  # as a slip of the hand does
        if not is_option and option in several and values > 0:
            out.append(option)
        if is_option:
            option, equals, _ = argument.partition("=")
            values = len(equals)
        else:
            values += 1
        out.append(argument)
    return out


def _is_number(text: str) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _fail(sentence: str) -> None:
    say_aside(sentence, "error", "red")
    sys.exit(2)


def _quiet() -> None:
    """Warnings as one line each, the same sentence once; no progress bars of other libraries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    told: set[str] = set()

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and str(message) not in told:
            told.add(str(message))
            say_aside(str(message), "warning", "yellow")

    warnings.showwarning = show_warning  # type: ignore[assignment]
