"""`lineas evaluate`: effect and damage of an intervention at several strengths."""

from __future__ import annotations

from dataclasses import asdict
from statistics import stdev
from typing import Annotated

import typer
from rich.table import Table

from lineas.cli.common import (
    DtypeOption,
    InterventionOption,
    JsonOption,
    ModelArgument,
    check_writable,
    load_interventions,
    model_for,
    progress_bar,
    say,
    write_json,
)
from lineas.errors import LineasError
from lineas.evaluation.report import measure
from lineas.prompts import read_prompts


def evaluate(
    intervention: InterventionOption,
    prompts: Annotated[str, typer.Option(metavar="FILE[:column]", help="Texts to continue.")],
    neutral: Annotated[str, typer.Option(metavar="FILE[:column]", help="Sentences whose perplexity is the damage.")],
    model: ModelArgument = None,
    strength: Annotated[list[float] | None, typer.Option(metavar="S ...", help="Default: 0 and 1.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts and sentences.")] = None,
    seeds: Annotated[int, typer.Option(help="Sampling seeds, 0 to N - 1.")] = 1,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure toxicity of continuations (alt-profanity-check) and perplexity of neutral sentences, at each strength."""
    check_writable(json)
    if seeds < 1 or (limit is not None and limit < 1):
        raise LineasError(f"--seeds and --limit must be at least 1, not {seeds} and {limit}.")
    texts, sentences = read_prompts(prompts)[:limit], read_prompts(neutral)[:limit]
    strengths = strength or [0.0, 1.0]
    chosen = load_interventions(intervention)
    text_model = model_for(model, chosen, dtype)
    with progress_bar("measuring", len(texts) * len(strengths) * seeds) as advance:
        rows, made = measure(text_model, chosen, texts, sentences, strengths, range(seeds), advance)
    table = Table("strength", "toxic", "over seeds", "mean score", "perplexity", box=None, header_style="bold")
    for row in rows:
        spread = f"± {100 * stdev(row.toxic_by_seed):.2f}" if seeds > 1 else ""
        table.add_row(
            f"{row.strength:g}", f"{100 * row.toxic:.2f} %", spread, f"{row.score:.4f}", f"{row.perplexity:.1f}"
        )
    say(json).print(table)
    write_json(
        json,
        {
            "model": text_model.name,
            "intervention": intervention,
            "dtype": str(text_model.dtype).removeprefix("torch."),
            "prompts": {"file": prompts, "count": len(texts)},
            "neutral": {"file": neutral, "count": len(sentences)},
            "seeds": list(range(seeds)),
            "rows": [asdict(row) for row in rows],
            "continuations": {f"{s:g}": made[s] for s in made},
        },
    )
