"""`report`: one HTML page about one intervention or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files.ownership import HTML, check_file
from lineas.files.strict_json import loads, read_bytes
from lineas.files.writing import check_place, write_text
from lineas.intervention.intervention import Intervention
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.printable import as_label
from lineas.reporting.html import Content, page
from lineas.reporting.image_grid import strip
from lineas.reporting.neurons import activity, largest_neurons, site_sizes
from lineas.reporting.samples import pictures_at, texts_at

STRENGTHS = (0.0, 0.5, 1.0)


def report(
    interventions: Mapping[str, Intervention],
    out: str | Path = "report.html",
    *,
    model: TextModel | ImageModel | None = None,
    prompts: Sequence[str] = (),
    examples: int = 4,
    strengths: Sequence[float] = STRENGTHS,
    evaluation: str | Path | None = None,
    neurons: int = 12,
    max_new_tokens: int = 32,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write one self-contained HTML page: learning, effect and damage, samples, layers, neurons, overlap.

    Args:
        interventions: what the page is about, by name.
        out: the file.
        model: the model that the interventions act on; without one the page has no samples.
        prompts: prompts that show what moves the neurons; needs the model.
        examples: number of prompts, from the first, that are continued or drawn at all strengths.
        strengths: strengths of the samples.
        evaluation: `evaluation.json` of `lineas evaluate`, for effect and damage; None for what the artifacts say.
        neurons: number of the largest neurons that are shown.
        max_new_tokens: largest number of tokens of a sample.
        seed: seed of the samples.
        overwrite: replace a page that lineas wrote.
        progress: called with the name of each intervention once it is done.

    Raises:
        LineasError: when the file holds something else, there is one prompt alone, or the model does not fit.
    """
    out = Path(out)
    check_place(out)
    check_file(out, overwrite, HTML)
    if len(prompts) == 1:
        raise LineasError("there is 1 prompt; what moves a neuron from its mean is seen from 2 on.")
    if prompts and model is None:
        raise LineasError("prompts need a model that runs them; give model=lineas.load(...).")
    curves = {name: one.facts["measurements"] for name, one in interventions.items() if one.facts.get("measurements")}
    if evaluation is not None:
        curves = _curves(Path(evaluation))
    largest, sizes, texts, strips = {}, {}, {}, {}
    for name, one in interventions.items():
        if model is not None:
            one.check_fits(model.network)
        active = activity(one, model, prompts) if prompts else {}
        largest[name] = largest_neurons(one, neurons, active, prompts)
        if active:
            sizes[name] = site_sizes(one, active)
        few, labels = prompts[:examples], [as_label(s) for s in strengths]
        if few and isinstance(model, ImageModel):
            strips[name] = strip(pictures_at(model, one, strengths, few, seed), few, labels)
        elif few and isinstance(model, TextModel):
            made = texts_at(model, one, strengths, few, seed=seed, max_new_tokens=max_new_tokens)
            columns = dict(zip(labels, made.values()))
            texts[name] = [(prompt, {s: column[i] for s, column in columns.items()}) for i, prompt in enumerate(few)]
        if progress:
            progress(name)
    write_text(out, page(Content(interventions, largest, curves, texts, strips, sizes)))
    return out


def _curves(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what an evaluation measured, by system; each curve begins at the untouched model."""
    try:
        rows = loads(read_bytes(file))["rows"]
        points = [(str(row["system"]), _point(row)) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        raise LineasError(f"{file} is no evaluation; lineas evaluate --out DIR writes DIR/evaluation.json.") from None
    untouched = [values for system, values in points if system == "untouched"]
    names = dict.fromkeys(system for system, _ in points if system != "untouched")
    return {
        name: [*untouched, *sorted((v for system, v in points if system == name), key=lambda row: row["strength"])]
        for name in names
    }


def _point(row: dict[str, Any]) -> dict[str, Any]:
    """Return the strength and the values of a row, and their intervals in one mapping."""
    values = {name: float(value) for name, value in {"strength": row["strength"], **row["values"]}.items()}
    intervals = {name: (float(low), float(high)) for name, (low, high) in dict(row.get("intervals", ())).items()}
    return {**values, "intervals": intervals}
