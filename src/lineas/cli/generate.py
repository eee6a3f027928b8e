"""`lineas generate`: continuations at several strengths, side by side."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineas.checks import SEED
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    InterventionOption,
    JsonOption,
    ModelArgument,
    OtherModelOption,
    RepetitionOption,
    StrengthsOption,
    TemperatureOption,
    TokensOption,
    TopPOption,
    accepts_other,
    as_strengths,
    load_interventions,
    progress_bar,
    say,
    text_model_for,
    write_json,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import check_outputs
from lineas.errors import LineasError
from lineas.printable import as_label, printable
from lineas.prompts import read_prompts
from lineas.reporting.samples import texts_at


class TokenChoice(str, Enum):
    """Which tokens are steered."""

    all = "all"
    prompt = "prompt"
    generated = "generated"
    answer = "answer"


def generate(
    intervention: InterventionOption,
    model: ModelArgument = None,
    strength: StrengthsOption = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT ...", help="Text to continue.")] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE[:column]", help="More of them, from a file.")] = None,
    max_new_tokens: TokensOption = 32,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 0.3,
    repetition_penalty: RepetitionOption = 1.2,
    tokens: Annotated[
        TokenChoice,
        typer.Option(
            help="Which tokens are steered: all, those of the prompt, those generated, or those that make the answer "
            "(the last of the prompt and those generated)."
        ),
    ] = TokenChoice.all,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are a user's turns in the chat template.")] = False,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, number("--seed", SEED, "Of the sampling; the same at every strength.")] = 0,
    json: JsonOption = None,
    force: ForceOption = False,
    other_model: OtherModelOption = False,
) -> None:
    """Continue prompts at several strengths and print them side by side; strength 0 is the untouched model."""
    check_outputs("generate", json, force=force, inputs=[*intervention, model, prompts])
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise LineasError("there is nothing to continue; give --prompt TEXT or --prompts FILE.")
    if any(not text.strip() for text in texts):
        raise LineasError("a prompt is empty; give it at least one word.")
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }
    chosen = load_interventions(intervention)
    strengths = as_strengths(strength or (0, 1), chosen)
    text_model = text_model_for(model, chosen, dtype)
    other = accepts_other(other_model, force, chosen, text_model.network)
    with progress_bar("generating", len(texts) * len(strengths)) as advance:
        made = texts_at(
            text_model, chosen, strengths, texts, tokens.value, other, **sampling, seed=seed, chat=chat,
            progress=advance,
        )  # fmt: skip
    side_by_side(say(json), texts, made)
    write_json(
        json,
        {
            "model": text_model.name,
            "intervention": intervention,
            "tokens": tokens.value,
            "seed": seed,
            "sampling": sampling | {"chat": chat},
            "continuations": [
                {"prompt": text, "by_strength": {as_label(s): made[s][i] for s in strengths}} 
                for i, text in enumerate(texts)
            ],
        },
        "generate",
    )  # fmt: skip


def side_by_side(console: Console, prompts: list[str], made: dict[float, list[str]]) -> None:
    """A table with a row a prompt and a column a strength."""
    table = Table(show_lines=True, expand=True)
    for strength in made:
        table.add_column(f"strength {as_label(strength)}", ratio=1)
    for i, prompt in enumerate(prompts):
        table.add_row(*(Text.assemble((printable(prompt), "bold"), printable(texts[i])) for texts in made.values()))
    console.print(table)
