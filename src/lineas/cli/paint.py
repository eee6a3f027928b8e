"""`lineas paint`: draw pictures at several strengths, as single files, a strip and an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import TOGETHER, as_seed
from lineas.cli import options
from lineas.cli.common import (
    accepts_other,
    interventions_and_strengths,
    model_for,
    progress_bar,
    screen_for,
    with_image_settings,
    write_json,
)
from lineas.cli.number_options import number, strengths_option
from lineas.cli.outputs import Output, check_outputs
from lineas.errors import LineasError
from lineas.files import writing
from lineas.files.ownership import FolderKind
from lineas.models.image import ImageModel
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.image_grid import animate, png_text, strip
from lineas.reporting.samples import pictures_at

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
STRIP, ANIMATION = "strip.png", "strip.gif"
KIND = FolderKind("a folder of lineas paint", "paint", STRIP)


def paint(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the pictures into.")],
    model: options.Model = None,
    intervention: options.OptionalInterventions = None,
    strength: Annotated[list[str] | None, strengths_option(STRENGTHS)] = None,
    prompt: options.Prompt = None,
    prompts: options.MorePrompts = None,
    seed: options.Seed = 0,
    inverse: Annotated[bool, typer.Option("--inverse", help="Apply the opposite of what was learned.")] = False,
    denoising_steps: options.DenoisingSteps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    batch_size: Annotated[int, number("--batch-size", TOGETHER, "Number of pictures to draw together.")] = 4,
    dtype: options.Dtype = "auto",
    json: options.Json = None,
    force: options.Force = False,
    other_model: options.OtherModel = False,
) -> None:
    """Draw prompts at several strengths: single pictures, a strip with one row for each prompt, a GIF."""
    place = Output("--out", out, KIND)
    check_outputs("paint", json, place, force=force, inputs=[intervention, model, prompts])
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise LineasError("there is nothing to draw; give --prompt TEXT or --prompts FILE.")
    chosen, strengths = interventions_and_strengths(intervention, strength, STRENGTHS, inverse=inverse)
    if inverse and chosen:
        chosen = chosen.inverse()
    loaded = model_for(model, chosen, dtype)
    if not isinstance(loaded, ImageModel):
        raise LineasError(
            f"{loaded.name} is a language model and draws no images; lineas generate continues texts with it."
        )
    image_model = with_image_settings(loaded, denoising_steps, guidance_scale, guidance, size)
    other = accepts_other(other_model, force, chosen, image_model.network)
    with progress_bar("painting", len(texts) * len(strengths)) as advance:
        rows = pictures_at(image_model, chosen, strengths, texts, seed, batch_size, other, advance)
    facts = {"out": str(out), "model": image_model.name, "intervention": intervention, "inverse": inverse, "seed": seed}
    facts |= image_model.facts
    with writing.new_folder(out, KIND, force) as folder:
        labels = write_strips(folder, rows, texts, strengths)
        for i, (text, row) in enumerate(zip(texts, rows)):
            for s, label, picture in zip(strengths, labels, row):
                own = {**facts, "prompt": text, "seed": as_seed(seed + i), "strength": s}
                picture.save(folder / f"{i + 1:02d}-{label}.png", pnginfo=png_text(own))
    screen_for(json).print(
        f"painted {len(texts)} prompts at {len(strengths)} strengths: {out / STRIP}, {out / ANIMATION}"
    )
    write_json(json, {**facts, "prompts": texts, "strengths": strengths}, "paint")


def write_strips(folder: Path, rows: list[list[Any]], prompts: Sequence[str], strengths: Sequence[float]) -> list[str]:
    """Write the strip and the animation, and return the labels of the columns."""
    labels = [as_label(s) for s in strengths]
    strip(rows, prompts, labels).save(folder / STRIP)
    animate(rows, prompts, labels, folder / ANIMATION)
    return labels
