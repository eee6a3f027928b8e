"""What evaluations of texts and of pictures share on the command line: names of what is judged, and the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from torch import nn

from lineas import signals
from lineas.checks import COUNT, SEEDS
from lineas.cli.common import accepts_other, say
from lineas.cli.number_options import number
from lineas.cli.terminal import say_aside
from lineas.errors import LineasError
from lineas.evaluation.classifiers import PROFANITY, Classifier, by_column, classifier, fitted
from lineas.evaluation.plan import BATCH, Plan
from lineas.evaluation.results import Evaluation
from lineas.evaluation.variants import Steered
from lineas.files.ownership import FolderKind
from lineas.files.strict_json import loads, read_bytes
from lineas.files.working_folder import claimed, give_up
from lineas.intervention.intervention import Intervention
from lineas.measures import measure
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.tables import cell, columns

PromptsOption = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Texts to continue, or pictures to draw; held out.")
]
NeutralOption = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Sentences that should be predicted as before.")
]
ClassifierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        metavar="[COLUMN=]NAME ...",
        help="profanity-check (default), MODULE:FUNCTION, hub id or folder with @LABEL; none.",
    ),
]
ShowsOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Of pictures: the concept that is looked for in them.")
]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", metavar="NAME", help="Of pictures: clip, CLIP+DINO, or a folder.")
]
PositiveOption = Annotated[
    str | None,
    typer.Option(metavar="FILE[:column]", help="Fit a classifier, column concept: texts that show the concept, ..."),
]
NegativeOption = Annotated[str | None, typer.Option(metavar="FILE[:column]", help="... and texts that do not.")]
SeedsOption = Annotated[int, number("--seeds", SEEDS, "Number of sampling seeds, 0 to N - 1.")]
LimitOption = Annotated[int | None, number("--limit", COUNT, "Only the first N prompts and sentences.")]
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
    """Return what is measured at every strength: of pictures where `shows` names a concept, else of texts.

    Args:
        prompts: file of the texts to continue, or of what to draw.
        neutral: file of the neutral sentences.
        classifiers: values of --classifier.
        positive: file of texts that show a concept, on which a classifier is fitted.
        negative: file of texts that do not.
        shows: the concept that is looked for in pictures.
        judge: name of the judge of pictures.
        seeds: number of sampling seeds.
        limit: number of prompts and sentences to take; None for all.
        more: further fields of a plan of texts.

    Raises:
        LineasError: when options contradict each other, or a file cannot be read.
    """
    if shows is not None:
        about_texts = {"--neutral": neutral, "--positive": positive, "--negative": negative}
        if foreign := [name for name, given in about_texts.items() if given]:
            raise LineasError(f"{foreign[0]} is about texts; leave it out, or leave out --shows.")
        if prompts is None:
            raise LineasError("there is nothing to draw; give --prompts FILE.")
        return Plan(read_prompts(prompts)[:limit], seeds=range(seeds), concept=shows, judge=judge)
    texts = read_prompts(prompts)[:limit] if prompts else []
    sentences = read_prompts(neutral)[:limit] if neutral else []
    judged = _classifiers(classifiers, positive, negative) if texts else {}
    return Plan(texts, sentences, judged, range(seeds), **{"sampling": {"batch_size": BATCH}, **(more or {})})


def _classifiers(given: list[str] | None, positive: str | None, negative: str | None) -> dict[str, str | Classifier]:
    """Return the classifiers by the columns of the table that they fill."""
    if (positive is None) != (negative is None):
        raise LineasError("fitting a classifier needs both --positive and --negative.")
    found: dict[str, str | Classifier] = dict(by_column(given or [PROFANITY]))
    for name in found.values():
        classifier(name)  # what cannot be loaded is refused now
    if positive is not None and negative is not None:
        if "concept" in found:
            raise LineasError("two classifiers would fill the column 'concept'; write COLUMN=NAME for the other one.")
        found["concept"], area = fitted(read_prompts(positive), read_prompts(negative))
        say_aside(f"concept classifier: area under the ROC curve {area:.3f} in a cross-validation")
    return found


@contextmanager
def worked_in(out: Path | None, settings: dict[str, Any], force: bool) -> Iterator[None]:
    """A folder that is this evaluation's alone within the block; interrupted, the same command goes on there."""
    if out is None:
        yield
        return
    signals.keeps(f"interrupted; what was measured is kept, the same command goes on in {out}.")
    with claimed(out, KIND, settings, force, old_settings, results=(EVALUATION, TABLE, PLOT)) as (is_new, _):
        try:
            yield
        except LineasError:
            if is_new and not (out / PARTS).exists():  # nothing came of it
                give_up(out)
            raise


def old_settings(out: Path) -> dict[str, Any] | None:
    """Return settings that equal none of today's for a folder of an evaluation of lineas 0.1.0; None of any other."""
    try:
        found = loads(read_bytes(out / EVALUATION))
        return {"version": found["versions"]["lineas"]} if isinstance(found["rows"], list) else None
    except (LineasError, LookupError, TypeError):
        return None


def parts_of(source: str) -> list[str]:
    """`a+b` as both, unless it is the name of one."""
    return [source] if Path(source).exists() else source.split("+")


def names_of(sources: list[str]) -> dict[str, str]:
    """What each is called in the table: its last name, or all of it where two share that."""
    short = {
        source: "+".join((Path(part).name or Path(part).resolve().name) for part in parts_of(source))
        for source in sources
    }
    return {source: name if list(short.values()).count(name) == 1 else source for source, name in short.items()}


def steered_systems(
    names: Mapping[str, str],
    learned: Mapping[str, Intervention],
    strengths: Sequence[float],
    network: nn.Module,
    force: bool,
    other_model: bool,
) -> list[Steered]:
    """Each intervention at each strength but 0, by the names of `names_of`."""
    return [
        Steered(names[source], one, s, accepts_other(other_model, force, one, network))
        for source, one in learned.items()
        for s in strengths
        if s != 0
    ]


def show(found: Evaluation, json: Path | None) -> None:
    """Show the table on the screen, without how varied continuations are; the files have that too."""
    names = [name for name in columns(found.rows) if measure(name).role != "variety"]
    table = Table(box=None, header_style="bold")
    for name in ("system", "strength", *names):
        table.add_column(name.replace("_", " "), no_wrap=name == "system")
    for row in found.rows:
        table.add_row(row.system, as_label(row.strength), *(cell(row, name).split(" [")[0] for name in names))
    say(json).print(table)
