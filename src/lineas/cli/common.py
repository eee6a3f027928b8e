"""What several verbs share: their options, the model they load, the JSON they write, the progress they show."""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from lineas import signals
from lineas.checks import DENOISING_STEPS, GUIDANCE, PROBABILITY, REPETITION, TEMPERATURE, TOKENS
from lineas.cli.number_options import CALIBRATED, as_strength_or_calibrated, number, size_option, strength_option
from lineas.cli.terminal import Terminal, say_aside, terminal
from lineas.errors import LineasError
from lineas.files.ownership import written_by
from lineas.files.strict_json import dumps
from lineas.files.writing import write_text
from lineas.intervention.intervention import Intervention
from lineas.learning.interruption import place_of_unfinished
from lineas.models import load
from lineas.models.default_model import NAME, is_here
from lineas.models.image import ImageModel
from lineas.models.quiet import no_bars
from lineas.models.text import TextModel
from lineas.printable import escaped

console = terminal()
SECONDS = 10.0
"""Time between two lines of progress where no bar can be drawn."""

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Hub id or folder; by default the intervention's own model, or SmolLM2-135M."),
]
InterventionOption = Annotated[
    list[str],
    typer.Option(
        "--intervention", metavar="DIR ...", help="Folder, name of a shipped one, or hub id; several act in turn."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON; - for standard output.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what lineas wrote there.")]
OtherModelOption = Annotated[
    bool, typer.Option("--other-model", help="Accept another model than the one it was learned on.")
]
TokensOption = Annotated[int, number("--max-new-tokens", TOKENS, "Tokens to add at most.")]
TemperatureOption = Annotated[float, number("--temperature", TEMPERATURE, "Of the sampling; 0 is greedy.")]
TopPOption = Annotated[float, number("--top-p", PROBABILITY, "Nucleus of the sampling.")]
RepetitionOption = Annotated[float, number("--repetition-penalty", REPETITION, "Of the sampling; 1 for none.")]


DenoisingStepsOption = Annotated[
    int | None, number("--denoising-steps", DENOISING_STEPS, "Of image models; default: the model's own.")
]
GuidanceScaleOption = Annotated[
    float | None, number("--guidance-scale", GUIDANCE, "Of image models; default: the model's own.")
]
GuidanceOption = Annotated[
    str | None, typer.Option(help="Of image models, what is steered: both (default), conditional; none: draw without.")
]
SizeOption = Annotated[Any, size_option("Of image models; default: the model's own.")]


def drawing(
    model: TextModel | ImageModel, steps: int | None, scale: float | None, guidance: str | None, size: Any
) -> Any:
    """A model with the settings that were given for images.

    Raises:
        LineasError: when some were given for a language model, or make no sense.
    """
    given = {"steps": steps, "guidance_scale": scale, "guidance": guidance, "size": size}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, ImageModel):
        return model.set(**given)
    if given:
        raise LineasError(
            f"{model.name} writes and draws no images; leave out --denoising-steps, --guidance-scale, --guidance and "
            "--size."
        )
    return model


StrengthsOption = Annotated[
    list[str] | None,
    strength_option("Numbers, or calibrated; default: 0 and 1, of pictures also in between.", several=True),
]


def as_strength(given: str | float, intervention: Intervention) -> float:
    """A strength as it is written: a number, or "calibrated"."""
    if isinstance(given, str):
        given = as_strength_or_calibrated(given)
    return intervention.calibrated_strength if given == CALIBRATED else float(given)


def as_strengths(given: Sequence[str | float], intervention: Intervention) -> list[float]:
    """Several of them, each once, in the order given."""
    return list(dict.fromkeys(as_strength(one, intervention) for one in given))


def load_quietly(name: str | None, dtype: str = "auto") -> TextModel | ImageModel:
    """Load a model with a note instead of other libraries' progress bars."""
    no_bars()
    first_time = name in (None, NAME) and not is_here()
    say_aside(f"loading {name or NAME}{' (the first time takes a minute)' if first_time else ''}")
    with redirect_stderr(io.StringIO()):  # reading a GGUF draws a bar of its own
        return load(name, dtype=dtype)


def load_interventions(sources: list[str]) -> Intervention:
    """Several artifacts as one intervention, in the order given."""
    if not sources:
        raise LineasError("name at least one --intervention.")
    return reduce(Intervention.then, map(Intervention.load, sources))


def text_model_for(name: str | None, intervention: Intervention | None, dtype: str) -> TextModel:
    """The language model named, or the one the intervention was learned on."""
    model = model_for(name, intervention, dtype)
    if not isinstance(model, TextModel):
        raise LineasError(
            f"{model.name} draws images and writes no text; lineas paint draws with it, and lineas evaluate "
            "--shows TEXT judges its pictures."
        )
    return model


def model_for(name: str | None, intervention: Intervention | None, dtype: str) -> TextModel | ImageModel:
    """The model named, or the one the intervention was learned on."""
    base = intervention.base if intervention is not None else None
    return load_quietly(name or (base.name if base else None), dtype)


def accepts_other(other_model: bool, force: bool, learned: Intervention, network: nn.Module) -> bool:
    """Return whether a network may be another than the learned one; for one version --force still says so."""
    if other_model or not force or learned.base is None:
        return other_model
    try:
        learned.base.check_is(network)
    except LineasError:
        warnings.warn(
            f"--force accepts another model than {learned.base.name} for the last time; write --other-model.",
            stacklevel=2,
        )
        return True
    return False


def write_json(path: Path | None, content: dict[str, Any], verb: str) -> None:
    """Write JSON to a file, whole or not at all, or to standard output for `-`; null where a number is not finite.

    Its first key says which verb wrote it, so that no file of others is taken for it.
    """
    if path is None:
        return
    text = escaped(dumps({"written_by": written_by(verb), **content}, gaps=True)) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_text(path, text)


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Any]:
    """Show a bar on standard error, or off a terminal, as in a log, a line every ten seconds.

    Args:
        label: what goes on.
        total: number of all steps; None where only `advance` will know.

    Yields:
        a function `advance(count, note="", total=None)`.
    """
    stderr = terminal(stderr=True)
    if not stderr.is_terminal:
        yield _lines_of_progress(label, total)
        return
    columns = [
        TextColumn(label, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    ]
    bar = Progress(*columns, console=stderr, transient=True)
    task = bar.add_task(label, total=total, note="")
    try:
        with suppress(OSError):  # of a terminal that is gone, which ends no work
            bar.start()
        yield lambda count, note="", total=None: bar.update(task, advance=count, note=note, total=total)
    finally:
        with suppress(OSError):
            bar.stop()


def _lines_of_progress(label: str, total: int | None) -> Callable[..., None]:
    """Return a function that says how far the work is, at most every SECONDS."""
    begun = last = time.monotonic()
    done, whole = 0, total

    def advance(count: int, note: str = "", total: int | None = None) -> None:
        nonlocal last, done, whole
        done, whole, now = done + count, total or whole, time.monotonic()
        if now - last >= SECONDS:
            last = now
            far = f"{done} of {whole}" if whole else f"{done}"
            say_aside(f"{label}: {far}{', ' if note else ''}{note}, {now - begun:.0f} s")

    return advance


def end_if_unfinished(learned: Intervention, out: Path) -> None:
    """End the command where learning was interrupted: what was learned goes beside `out`, which stays as it is."""
    if "interrupted" not in learned.facts:
        return
    place = place_of_unfinished(out)
    learned.with_facts(name=place.name).save(place)
    signals.keeps(f"interrupted after {learned.unfinished}; what was learned is in {place}.")
    raise KeyboardInterrupt


def say(path: Path | None) -> Terminal:
    """Where the verb talks: nowhere when standard output carries JSON."""
    return terminal(quiet=True) if path is not None and str(path) == "-" else console
