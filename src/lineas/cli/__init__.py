"""The command line: one verb, one file; errors are one sentence and exit code 2."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lineas import signals
from lineas.errors import first_line

if TYPE_CHECKING:
    from typer.core import TyperGroup


class Verb(NamedTuple):
    """A verb before its module is imported.

    Args:
        help: the first paragraph of its docstring.
        settings: of click, where they are not the usual ones.
    """

    help: str
    settings: dict[str, Any] | None = None


VERBS = {
    "learn": Verb("Learn an intervention from two files of prompts, neither paired nor of one length."),
    "generate": Verb(
        "Continue prompts at several strengths and print them side by side; strength 0 is the untouched model."
    ),
    "paint": Verb("Draw prompts at several strengths: a strip with a row a prompt, every picture, and an animation."),
    "show": Verb(
        "Draw where the maps act: sites by share of touched neurons and size of the change; support, folding, origin."
    ),
    "evaluate": Verb(
        "Measure effect (classifiers of continuations) and damage (perplexity, divergence, tasks) at each strength."
    ),
    "compose": Verb(
        "Make one intervention of several: one after the other, as learned with `learn --on`, or their changes added."
    ),
    "sweep": Verb("Learn along gamma, judge every point, and choose the sparsest that keeps the effect."),
    "calibrate": Verb(
        "Find the strength by bisection on held-out prompts, and write it and the curve into the model card."
    ),
    "gate": Verb("Let every token have as much of an intervention as it looks like the prompts that need it."),
    "report": Verb(
        "Write one self-contained page, readable in light and dark; nothing in it is loaded from elsewhere."
    ),
    "fold": Verb("Write a plain checkpoint that does by itself what the intervention does to MODEL at a strength."),
    "export": Verb(
        "Write the shifts at the outputs of blocks as a control vector for llama.cpp, and say what is lost."
    ),
    "demo": Verb(
        "Teach a small language model politeness from 48 rude and 48 polite remarks, in two minutes, and judge it."
    ),
    "serve": Verb(
        'Serve MODEL on vLLM; a request names the model MODEL:calm@0.7, or says {"lineas": "calm:0.7"} in vllm_xargs.',
        {"ignore_unknown_options": True, "allow_extra_args": True},
    ),
    "lm-eval": Verb(
        "Run lm_eval with the model type lineas.", {"ignore_unknown_options": True, "help_option_names": []}
    ),
}
"""In the order of the help."""
COMPLETING = "_LINEAS_COMPLETE"
"""Set by a shell that asks how a command may go on."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 with one sentence on stderr, 128 + N after signal N.

    Args:
        arguments: as on the command line; None for the process's own, whose end is then the command's.
    """
    with signals.running(alone=arguments is None) as command:
        _run(sys.argv[1:] if arguments is None else arguments, command)


def _run(given: list[str], command: signals.Command) -> None:
    import typer

    from lineas.errors import LineasError

    _quiet()
    if COMPLETING in os.environ:
        _complete()
    group = _group(given[0] if given else None)
    try:
        with command.interruptible():
            spread = given if given[:1] == ["lm-eval"] else _spread(group, given)
            with group.make_context("lineas", [*spread]) as context:
                group.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except LineasError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever reads the output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
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
        verb = f" {given[0]}" if given and given[0] in VERBS else ""
        _fail(f"{in_words().rstrip('.')}; see lineas{verb} --help.")


def _complete() -> NoReturn:
    """Answer a shell that asks how a command may go on, and exit."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()
    _group(words[1] if len(words) > 1 else None)._main_shell_completion({}, "lineas", COMPLETING)
    sys.exit(0)


def _group(called: str | None) -> TyperGroup:
    """All verbs, of which the called one alone is imported."""
    import typer

    app = typer.Typer(
        name="lineas",
        no_args_is_help=True,
        help="Steer generative models by small, sparse maps on their activations, learned from a handful of examples.",
    )

    @app.callback(invoke_without_command=True)
    def lineas(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
        if version:
            from lineas.versions import lineas_version

            print(lineas_version())
            raise typer.Exit

    for name, verb in VERBS.items():
        function: Any = _not_called
        if name == called:
            module = name.replace("-", "_")
            function = getattr(import_module(f"lineas.cli.{module}"), module)
        app.command(name, help=None if name == called else verb.help, context_settings=verb.settings)(function)
    return typer.main.get_command(app)  # pyright: ignore[reportReturnType]


def _not_called() -> None:
    """Stand in the help for a verb."""


def _spread(group: TyperGroup, arguments: list[str]) -> list[str]:
    """`--strength 0 1` as `--strength 0 --strength 1`, for the options of a command that take several values.

    What begins with a dash and is none of the command's options is a value there: a number, or a text.
    """
    command = group.commands.get(arguments[0]) if arguments else None
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
    from lineas.checks import number

    try:
        number(text)
    except ValueError:
        return False
    return True


def _fail(sentence: str) -> None:
    if _debugging():
        traceback.print_exc()
    _say_error(sentence)
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
    _say_error(sentence)
    sys.exit(1)


def _say_error(sentence: str) -> None:
    from lineas.cli.terminal import say_aside

    say_aside(sentence, "error", "red")


def _debugging() -> bool:
    return os.environ.get("LINEAS_DEBUG", "0") not in ("", "0")


def _quiet() -> None:
    """Warnings as one line each, the same sentence once; no progress bars of other libraries."""
    import warnings

    from lineas.cli.terminal import say_aside

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    told: set[str] = set()

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        said_at_the_end = issubclass(category, signals.InterruptedLearning)
        if issubclass(category, UserWarning) and not said_at_the_end and str(message) not in told:
            told.add(str(message))
            say_aside(str(message), "warning", "yellow")

    warnings.showwarning = show_warning
