"""Arguments and options that several verbs share, each with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import COUNT, DENOISING_STEPS, GUIDANCE, PROBABILITY, REPETITION, SEED, SEEDS, TEMPERATURE, TOKENS
from lineas.cli.number_options import number, size_option, strength_option

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Hub id or folder; default: the intervention's own model, or SmolLM2-135M."),
]
PlainModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Hub id or folder; default: SmolLM2-135M-Instruct.")
]
Intervention = Annotated[str, typer.Argument(metavar="DIR", help="Folder, shipped name or hub id of an intervention.")]
Interventions = Annotated[
    list[str],
    typer.Option("--intervention", metavar="DIR ...", help="Folder, shipped name or hub id; several apply in order."),
]
OptionalInterventions = Annotated[
    list[str] | None,
    typer.Option(
        "--intervention", metavar="DIR ...",
        help="Folder, shipped name or hub id; several apply in order; none for the untouched model.",
    ),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write the intervention into.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16 or float16.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON; - for standard output.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that lineas wrote earlier.")]
OtherModel = Annotated[
    bool, typer.Option("--other-model", help="Accept another model than the intervention was learned on.")
]
Seed = Annotated[
    int,
    number("--seed", SEED, "Seed of all random choices (drawn prompts, sampling, noise), the same at any strength."),
]
Prompt = Annotated[list[str] | None, typer.Option(metavar="TEXT ...", help="Prompts to continue or to draw.")]
MorePrompts = Annotated[str | None, typer.Option(metavar="FILE[:column]", help="File of further prompts.")]
Strength = Annotated[str, strength_option("Strength of the intervention: a number, or calibrated.")]
Tokens = Annotated[int, number("--max-new-tokens", TOKENS, "Largest number of tokens to add to a prompt.")]
Temperature = Annotated[float, number("--temperature", TEMPERATURE, "Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, number("--top-p", PROBABILITY, "Probability mass of nucleus sampling; 1 keeps all.")]
Repetition = Annotated[
    float, number("--repetition-penalty", REPETITION, "Penalty on tokens that occurred before; 1 is no penalty.")
]
DenoisingSteps = Annotated[
    int | None,
    number("--denoising-steps", DENOISING_STEPS, "Denoising steps of an image model; default: the model's own."),
]
GuidanceScale = Annotated[
    float | None, number("--guidance-scale", GUIDANCE, "Guidance scale of an image model; default: the model's own.")
]
Guidance = Annotated[
    str | None,
    typer.Option(
        help="Passes of an image model that are steered: both (default) or conditional; none draws without guidance."
    ),
]
Size = Annotated[Any, size_option("Size of the pictures of an image model; default: the model's own.")]
Prompts = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Held-out prompts to continue or to draw, for the effect.")
]
Neutral = Annotated[
    str | None, typer.Option(metavar="FILE[:column]", help="Neutral sentences to predict, for the damage.")
]
Classifier = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        metavar="[COLUMN=]NAME ...",
        help="Classifiers: profanity-check (default), MODULE:FUNCTION, hub id or folder with @LABEL, or none.",
    ),
]
Shows = Annotated[str | None, typer.Option(metavar="TEXT", help="Concept to look for in pictures.")]
Judge = Annotated[
    str | None, typer.Option("--judge", metavar="NAME", help="Judge of pictures: clip, CLIP+DINO, or a folder.")
]
Positive = Annotated[
    str | None,
    typer.Option(metavar="FILE[:column]", help="Texts with a concept, to fit a classifier for the column 'concept'."),
]
Negative = Annotated[str | None, typer.Option(metavar="FILE[:column]", help="Texts without the concept of --positive.")]
Seeds = Annotated[int, number("--seeds", SEEDS, "Number of sampling seeds, which are 0 to N - 1.")]
Limit = Annotated[int | None, number("--limit", COUNT, "Use only the first N prompts and sentences.")]
Source = Annotated[str, typer.Option("--source", metavar="FILE[:column]", help="Prompts of the behaviour to leave.")]
Target = Annotated[str, typer.Option("--target", metavar="FILE[:column]", help="Prompts of the behaviour to reach.")]
Samples = Annotated[
    int | None, number("--samples", COUNT, "Number of prompts to draw at random from each file; default: all.")
]
Sites = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Modules that carry maps; default: the method's own (norms before MLPs)."),
]
MaxLength = Annotated[int, number("--max-length", TOKENS, "Largest number of tokens of a prompt.")]
Pooling = Annotated[
    str, typer.Option(help="Pooling over tokens or pixels: mean, or max for a concept that fills few of them.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that learning may use beside the weights, such as 8GiB; default: half of the free memory.",
    ),
]
