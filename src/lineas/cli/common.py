"""Shared parts of the verbs: loading of models and interventions, strengths, JSON output, progress bars."""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import reduce
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from lineas import signals
from lineas.cli.number_options import as_strength_or_calibrated
from lineas.cli.terminal import Terminal, print_aside, terminal
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

screen = terminal()
SECONDS = 10.0
"""Seconds between two lines of progress, where no bar can be drawn."""


def with_image_settings(
    model: TextModel | ImageModel, steps: int | None, scale: float | None, guidance: str | None, size: Any
) -> Any:
    """Return a model with the image settings that are not None; a language model takes none."""
    settings = {"steps": steps, "guidance_scale": scale, "guidance": guidance, "size": size}
    settings = {name: value for name, value in settings.items() if value is not None}
    if isinstance(model, ImageModel):
        return model.set(**settings)
    if settings:
        raise LineasError(
            f"{model.name} is a language model and draws no images; leave out --denoising-steps, --guidance-scale, "
            "--guidance and --size."
        )
    return model


def as_strength(value: str | float, intervention: Intervention) -> float:
    """Return a strength that is written as a number, or as "calibrated"."""
    if isinstance(value, str):
        value = as_strength_or_calibrated(value)
    return intervention.strength_from(value)


def as_strengths(values: Sequence[str | float], intervention: Intervention) -> list[float]:
    """Return several strengths in their order, each once."""
    return list(dict.fromkeys(as_strength(value, intervention) for value in values))


def interventions_and_strengths(
    sources: list[str] | None, strengths: Sequence[str | float] | None, default: Sequence[float], **others: object
) -> tuple[Intervention | None, list[float]]:
    """Return the interventions as one, and the strengths; without interventions, None and strength 0.

    The values of `others` are those of further options that need an intervention; a false one was not given.
    """
    if sources:
        chosen = load_interventions(sources)
        return chosen, as_strengths(strengths or default, chosen)
    for option, value in {"strength": strengths, **others}.items():
        if value:
            raise LineasError(f"--{option} changes an intervention; name one with --intervention DIR.")
    return None, [0.0]


def load_quietly(name: str | None, dtype: str = "auto") -> TextModel | ImageModel:
    """Load a model and print one line instead of the progress bars of other libraries."""
    no_bars()
    first_time = name in (None, NAME) and not is_here()
    print_aside(f"loading {name or NAME}{' (the first time takes a minute)' if first_time else ''}")
    with redirect_stderr(io.StringIO()):  # reading a GGUF file draws a bar of its own
        return load(name, dtype=dtype)


def load_interventions(sources: list[str]) -> Intervention:
    """Load artifacts as one intervention, which applies them in the order given."""
    if not sources:
        raise LineasError("name at least one --intervention.")
    return reduce(Intervention.then, map(Intervention.load, sources))


def text_model_for(name: str | None, intervention: Intervention | None, dtype: str) -> TextModel:
    """Load the language model of this name; if None, the one on which the intervention was learned."""
    model = model_for(name, intervention, dtype)
    if not isinstance(model, TextModel):
        raise LineasError(
            f"{model.name} draws images and writes no text; lineas paint draws with it, and lineas evaluate "
            "--shows TEXT judges its pictures."
        )
    return model


def model_for(name: str | None, intervention: Intervention | None, dtype: str) -> TextModel | ImageModel:
    """Load the model of this name; if None, the one on which the intervention was learned."""
    base = intervention.base if intervention is not None else None
    return load_quietly(name or (base.name if base else None), dtype)


def accepts_other(other_model: bool, force: bool, learned: Intervention | None, network: nn.Module) -> bool:
    """Return whether the network may differ from the one learned on; --force still allows it, with a warning."""
    if other_model or not force or learned is None or learned.base is None:
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
    """Write JSON to a file, whole or not at all, or to standard output for `-`.

    Numbers that are not finite become null. The first key names the verb that wrote the file, so lineas can later
    recognise its own files.
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
    """Show a bar on standard error; where that is no terminal, print a line every ten seconds.

    Args:
        total: number of all steps; None if `advance` will pass it.

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
        with suppress(OSError):  # a terminal that is gone does not end the work
            bar.start()
        yield lambda count, note="", total=None: bar.update(task, advance=count, note=note, total=total)
    finally:
        with suppress(OSError):
            bar.stop()


def _lines_of_progress(label: str, total: int | None) -> Callable[..., None]:
    """Return a function that prints the state of the work, at most once in SECONDS."""
    begun = last = time.monotonic()
    done, all_steps = 0, total

    def advance(count: int, note: str = "", total: int | None = None) -> None:
        nonlocal last, done, all_steps
        done, all_steps, now = done + count, total or all_steps, time.monotonic()
        if now - last >= SECONDS:
            last = now
            state = f"{done} of {all_steps}" if all_steps else f"{done}"
            print_aside(f"{label}: {state}{', ' if note else ''}{note}, {now - begun:.0f} s")

    return advance


def end_if_unfinished(learned: Intervention, out: Path) -> None:
    """End the command if learning was interrupted; its result is saved beside `out`, which stays as it is."""
    if "interrupted" not in learned.facts:
        return
    place = place_of_unfinished(out)
    learned.with_facts(name=place.name).save(place)
    signals.if_interrupted(f"interrupted after {learned.unfinished}; what was learned is in {place}.")
    raise KeyboardInterrupt


def screen_for(json: Path | None) -> Terminal:
    """Return the terminal on standard output; a silent one if standard output carries JSON."""
    return terminal(quiet=True) if json is not None and str(json) == "-" else screen


def parts_of(source: str) -> list[str]:
    """Return `a+b` as both parts, unless a folder has that name."""
    return [source] if Path(source).exists() else source.split("+")


def names_of(sources: list[str]) -> dict[str, str]:
    """Return the name of each source in the table: its last part, or all of it if two share that."""
    short = {
        source: "+".join((Path(part).name or Path(part).resolve().name) for part in parts_of(source))
        for source in sources
    }
    return {source: name if list(short.values()).count(name) == 1 else source for source, name in short.items()}
