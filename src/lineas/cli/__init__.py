"""The command line: one verb in one file; an error is one sentence and exit code 2."""

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
        help: the first paragraph of the docstring of its function.
        settings: context settings of click; None for the usual ones.
    """

    help: str
    settings: dict[str, Any] | None = None


VERBS = {
    "learn": Verb("Learn an intervention from two files of prompts, which need not be paired or equally long."),
    "generate": Verb("Continue prompts at several strengths and print the texts side by side."),
    "paint": Verb("Draw prompts at several strengths: single pictures, a strip with one row for each prompt, a GIF."),
    "show": Verb("Show where an intervention acts, how much it changes, what folds, and what it was learned from."),
    "evaluate": Verb(
        "Measure effect (classifiers of continuations) and damage (perplexity, divergence, tasks) at each strength."
    ),
    "compose": Verb("Make one intervention of several: applied one after the other, or with their changes added."),
    "sweep": Verb(
        "Learn with several penalties gamma, judge each result, and choose the sparsest that has the effect."
    ),
    "calibrate": Verb(
        "Find the right strength by bisection on held-out prompts, and write it into the artifact and its model card."
    ),
    "gate": Verb("Add gates: each token is steered as much as it resembles the prompts that need steering."),
    "report": Verb("Write one self-contained HTML page on interventions, which loads nothing from elsewhere."),
    "fold": Verb("Write a plain checkpoint whose own weights do what the intervention does at one strength."),
    "export": Verb("Write the shifts at block outputs as a control vector for llama.cpp, and list what is lost."),
    "demo": Verb("Teach a small language model politeness from 48 rude and 48 polite remarks, and judge it."),
    "serve": Verb(
        'Serve MODEL on vLLM; a request asks for MODEL:calm@0.7, or passes {"lineas": "calm:0.7"} in vllm_xargs.',
        {"ignore_unknown_options": True, "allow_extra_args": True},
    ),
    "lm-eval": Verb(
        "Run lm_eval with the model type lineas.", {"ignore_unknown_options": True, "help_option_names": []}
    ),
}
"""All verbs, in the order of the help."""
COMPLETING = "_LINEAS_COMPLETE"
"""The environment variable of a shell that asks for completions of a command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 with one sentence on stderr, 128 + N after signal N.

    Args:
        arguments: words after `lineas`; None for those of this process, which then ends with the command.
    """
    with signals.running(alone=arguments is None) as command:
        _run(sys.argv[1:] if arguments is None else arguments, command)


def _run(arguments: list[str], command: signals.Command) -> None:
    import typer

    from lineas.errors import LineasError

    _quiet()
    if COMPLETING in os.environ:
        _complete()
    group = _group(arguments[0] if arguments else None)
    try:
        with command.interruptible():
            words = arguments if arguments[:1] == ["lm-eval"] else _spread(group, arguments)
            with group.make_context("lineas", [*words]) as context:
                group.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except LineasError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the output, such as head, has read enough
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
        usage_message = getattr(error, "format_message", None)  # of wrong usage, by click or typer's copy of click
        if usage_message is None:
            _fail_with_bug(error)
        if not usage_message():  # no arguments: the help was shown
            sys.exit(2)
        verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
        _fail(f"{usage_message().rstrip('.')}; see lineas{verb} --help.")


def _complete() -> NoReturn:
    """Print completions for a shell, and exit."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()
    _group(words[1] if len(words) > 1 else None)._main_shell_completion({}, "lineas", COMPLETING)
    sys.exit(0)


def _group(called: str | None) -> TyperGroup:
    """Return the command line with all verbs; only the module of the called one is imported."""
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
    """Stand for a verb that is listed in the help and not imported."""


def _spread(group: TyperGroup, arguments: list[str]) -> list[str]:
    """Return the arguments with `--strength 0 1` written as `--strength 0 --strength 1`.

    This concerns options that take several values. After one of them, a word that begins with a dash is a value too
    if it is no option of the command: a number, or a text.
    """
    command = group.commands.get(arguments[0]) if arguments else None
    options = [] if command is None else command.params
    with_several = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    passes_on = command is not None and "ignore_unknown_options" in command.context_settings
    words: list[str] = []
    option, values = "", 0
    for argument in arguments:
        is_option = argument.startswith("-") and not _is_number(argument)
        if is_option and option in with_several and argument.partition("=")[0] not in known and not passes_on:
            is_option = argument.startswith("--") and " " not in argument  # a misspelt option looks like this
        if not is_option and option in with_several and values > 0:
            words.append(option)
        if is_option:
            option, equals, _ = argument.partition("=")
            values = len(equals)
        else:
            values += 1
        words.append(argument)
    return words


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
    _print_error(sentence)
    sys.exit(2)


def _fail_with_bug(error: Exception) -> NoReturn:
    """Print where an unexpected error happened and how to report it, and exit with 1."""
    if _debugging():
        traceback.print_exception(error)
        sys.exit(1)
    if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in ("out of memory", "allocate memory")):
        _fail(f"there is not enough memory ({first_line(error)}); give fewer or shorter texts, or a smaller batch.")
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parents[1])]
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "an unknown place"
    _print_error(
        f"this is a bug of lineas ({type(error).__name__}: {first_line(error)}, in {at}); please report it to the "
        "project, with the command. LINEAS_DEBUG=1 shows the traceback."
    )
    sys.exit(1)


def _print_error(sentence: str) -> None:
    from lineas.cli.terminal import print_aside

    print_aside(sentence, "error", "red")


def _debugging() -> bool:
    return os.environ.get("LINEAS_DEBUG", "0") not in ("", "0")


def _quiet() -> None:
    """Print each warning once, in one line, and silence the messages of transformers."""
    import warnings

    from lineas.cli.terminal import print_aside

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    printed: set[str] = set()

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        printed_at_the_end = issubclass(category, signals.InterruptedLearning)
        if issubclass(category, UserWarning) and not printed_at_the_end and str(message) not in printed:
            printed.add(str(message))
            print_aside(str(message), "warning", "yellow")

    warnings.showwarning = show_warning
