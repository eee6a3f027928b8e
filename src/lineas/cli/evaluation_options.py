"""Shared parts of the verbs that measure: their options, the plan, the working folder, the table on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas import signals
from lineas.checks import COUNT, SEEDS
from lineas.cli.common import screen_for
from lineas.cli.number_options import number
from lineas.cli.terminal import print_aside
from lineas.errors import LineasError
from lineas.evaluation.classifiers import PROFANITY, Classifier, by_column, classifier, fitted
from lineas.evaluation.plan import BATCH, Plan
from lineas.evaluation.results import Evaluation
from lineas.files.ownership import FolderKind
from lineas.files.strict_json import loads, read_bytes
from lineas.files.working_folder import claimed, give_up
from lineas.measures import measure
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.tables import cell, columns

PromptsOption = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Held-out prompts to continue or to draw, for the effect.")
]
NeutralOption = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Neutral sentences to predict, for the damage.")
]
ClassifierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        metavar="[COLUMN=]NAME ...",
        help="Classifiers: profanity-check (default), MODULE:FUNCTION, hub id or folder with @LABEL, or none.",
    ),
]
ShowsOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Concept to look for in pictures.")]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", metavar="NAME", help="Judge of pictures: clip, CLIP+DINO, or a folder.")
]
PositiveOption = Annotated[
    str | None,
    typer.Option(metavar="FILE[:column]", help="Texts with a concept, to fit a classifier for the column 'concept'."),
]
NegativeOption = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Texts without the concept of --positive.")
]
SeedsOption = Annotated[int, number("--seeds", SEEDS, "Number of sampling seeds, which are 0 to N - 1.")]
LimitOption = Annotated[int | None, number("--limit", COUNT, "Use only the first N prompts and sentences.")]
EVALUATION, TABLE, PLOT, PARTS = "evaluation.json", "evaluation.md", "effect-damage.png", "parts"
KIND = FolderKind("an evaluation", "evaluation", EVALUATION)


def plan_of(
    prompts: str | None,
    neutral: str | None,
    classifiers: list[str] | None,
    positive: str | None = None,
    negative: str | None = None,
    *,
    shows: str | None,
    judge: str | None,
    seeds: int,
    limit: int | None,
    more: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the measurements that the options ask for: of pictures if `shows` names a concept, else of texts.

    Args:
        prompts: file of the prompts to continue or to draw.
        neutral: file of the neutral sentences.
        classifiers: values of --classifier.
        positive: file of texts that show a concept, to fit a classifier.
        negative: file of texts that do not show it.
        shows: concept to look for in pictures; None for texts.
        judge: name of the judge of pictures.
        seeds: number of sampling seeds.
        limit: number of prompts and sentences to use; None for all.
        more: further fields of a plan for texts.

    Raises:
        LineasError: when options contradict each other, or a file cannot be read.
    """
    if shows is not None:
        refuse_beside_shows({"--neutral": neutral, "--positive": positive, "--negative": negative})
        if prompts is None:
            raise LineasError("there is nothing to draw; give --prompts FILE.")
        return Plan(read_prompts(prompts)[:limit], seeds=range(seeds), concept=shows, judge=judge)
    texts = read_prompts(prompts)[:limit] if prompts else []
    sentences = read_prompts(neutral)[:limit] if neutral else []
    judged = _classifiers(classifiers, positive, negative) if texts else {}
    return Plan(texts, sentences, judged, range(seeds), **{"sampling": {"batch_size": BATCH}, **(more or {})})


def refuse_beside_shows(options: Mapping[str, Any]) -> None:
    """Refuse options about texts, by name, that have a value although --shows asks for pictures."""
    if used := [name for name, value in options.items() if value]:
        raise LineasError(f"{used[0]} is about texts; leave it out, or leave out --shows.")


def _classifiers(names: list[str] | None, positive: str | None, negative: str | None) -> dict[str, str | Classifier]:
    """Return the classifiers by the column of the table that each fills."""
    if (positive is None) != (negative is None):
        raise LineasError("fitting a classifier needs both --positive and --negative.")
    classifiers: dict[str, str | Classifier] = dict(by_column(names or [PROFANITY]))
    for name in classifiers.values():
        classifier(name)  # so that one that cannot be loaded is refused now
    if positive is not None and negative is not None:
        if "concept" in classifiers:
            raise LineasError("two classifiers would fill the column 'concept'; write COLUMN=NAME for the other one.")
        classifiers["concept"], area = fitted(read_prompts(positive), read_prompts(negative))
        print_aside(f"concept classifier: area under the ROC curve {area:.3f} in a cross-validation")
    return classifiers


@contextmanager
def evaluation_folder(out: Path | None, settings: dict[str, Any], force: bool) -> Iterator[None]:
    """Claim the folder of an evaluation within the block; after an interruption the same command goes on there."""
    if out is None:
        yield
        return
    signals.if_interrupted(f"interrupted; what was measured is kept, the same command goes on in {out}.")
    with claimed(out, KIND, settings, force, old_settings, results=(EVALUATION, TABLE, PLOT)) as (is_new, _):
        try:
            yield
        except LineasError:
            if is_new and not (out / PARTS).exists():  # nothing was measured
                give_up(out)
            raise


def old_settings(out: Path) -> dict[str, Any] | None:
    """Return settings of an evaluation by lineas 0.1.0, which differ from all of today's; None for another folder."""
    try:
        evaluation = loads(read_bytes(out / EVALUATION))
        return {"version": evaluation["versions"]["lineas"]} if isinstance(evaluation["rows"], list) else None
    except (LineasError, LookupError, TypeError):
        return None


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


def print_table(evaluation: Evaluation, json: Path | None) -> None:
    """Print the table, without measures of variety if there are others; the files have all measures."""
    names = columns(evaluation.rows)
    names = [name for name in names if measure(name).role != "variety"] or names
    table = Table(box=None, header_style="bold")
    for name in ("system", "strength", *names):
        table.add_column(name.replace("_", " "), no_wrap=name == "system")
    for row in evaluation.rows:
        table.add_row(row.system, as_label(row.strength), *(cell(row, name).split(" [")[0] for name in names))
    screen_for(json).print(table)
