"""`lineas generate`: continue prompts at several strengths, side by side."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineas.cli import options
from lineas.cli.common import (
    accepts_other,
    interventions_and_strengths,
    progress_bar,
    screen_for,
    text_model_for,
    write_json,
)
from lineas.cli.number_options import strengths_option
from lineas.cli.outputs import check_outputs
from lineas.errors import LineasError
from lineas.printable import as_label, printable
from lineas.prompts import read_prompts
from lineas.reporting.samples import texts_at


class TokenChoice(str, Enum):
    """The tokens that are steered."""

    all = "all"
    prompt = "prompt"
    generated = "generated"
    answer = "answer"


def generate(
    model: options.Model = None,
    intervention: options.OptionalInterventions = None,
    strength: Annotated[list[str] | None, strengths_option((0, 1))] = None,
    prompt: options.Prompt = None,
    prompts: options.MorePrompts = None,
    max_new_tokens: options.Tokens = 32,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 0.3,
    repetition_penalty: options.Repetition = 1.2,
    tokens: Annotated[
        TokenChoice | None,
        typer.Option(
            show_default="all",
            help="Tokens that are steered: all, those of the prompt, the generated ones, or answer (the last token of "
            "the prompt and the generated ones).",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the chat template, as the user's message.")
    ] = False,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    json: options.Json = None,
    force: options.Force = False,
    other_model: options.OtherModel = False,
) -> None:
    """Continue prompts at several strengths and print the texts side by side."""
    check_outputs("generate", json, force=force, inputs=[intervention, model, prompts])
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise LineasError("there is nothing to continue; give --prompt TEXT or --prompts FILE.")
    if any(not text.strip() for text in texts):
        raise LineasError("a prompt is empty; give it at least one word.")
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    sampling |= {"repetition_penalty": repetition_penalty}
    steered = (tokens or TokenChoice.all).value
    chosen, strengths = interventions_and_strengths(intervention, strength, (0, 1), tokens=tokens)
    text_model = text_model_for(model, chosen, dtype)
    other = accepts_other(other_model, force, chosen, text_model.network)
    with progress_bar("generating", len(texts) * len(strengths)) as advance:
        continuations = texts_at(
            text_model, chosen, strengths, texts, steered, other, **sampling, seed=seed, chat=chat,
            progress=advance,
        )  # fmt: skip
    side_by_side(screen_for(json), texts, continuations, chat)
    by_prompt = [
        {"prompt": text, "by_strength": {as_label(s): continuations[s][i] for s in strengths}}
        for i, text in enumerate(texts)
    ]
    facts = {"model": text_model.name, "intervention": intervention, "tokens": steered, "seed": seed}
    write_json(json, {**facts, "sampling": sampling | {"chat": chat}, "continuations": by_prompt}, "generate")


def side_by_side(
    console: Console, prompts: list[str], continuations: dict[float, list[str]], chat: bool = False
) -> None:
    """Print a table with a row for each prompt and a column for each strength; chat answers have their own line."""
    table = Table(show_lines=True, expand=True)
    for strength in continuations:
        table.add_column(f"strength {as_label(strength)}", ratio=1)
    for prompt, *texts in zip(prompts, *continuations.values()):
        table.add_row(*(Text.assemble((printable(prompt), "bold"), "\n" * chat, printable(text)) for text in texts))
    console.print(table)
