"""Strips: pictures side by side, a row a prompt and a column a strength, with labels; and the same in motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineas.files.ownership import written_by
from lineas.files.strict_json import dumps
from lineas.printable import in_a_line

LEAST = 160
"""Sides of a picture in a strip; smaller ones are enlarged."""
MARGIN = 12
TEXT = 15
"""Height of the letters at least; in a wide strip they are larger."""
MILLISECONDS = 350
"""That a frame of the animation stands."""
INK, PAPER = (30, 30, 30), (255, 255, 255)


def strip(rows: Sequence[Sequence[Any]], prompts: Sequence[str], columns: Sequence[str]) -> Any:
    """One picture of many.

    Args:
        rows: by prompt, one picture a column, all of one size.
        prompts: written above each row.
        columns: written above the first row.

    Returns:
        a PIL image.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [[_enlarged(picture) for picture in row] for row in rows]
    width, height = rows[0][0].size
    across = MARGIN + len(columns) * (width + MARGIN)
    text = max(TEXT, across // 64)  # pages show a wide strip smaller
    line = text + MARGIN
    each = height + line + MARGIN
    whole = Image.new("RGB", (across, line + len(rows) * each + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(text)
    for j, label in enumerate(columns):
        middle = MARGIN + j * (width + MARGIN) + width / 2
        pen.text((middle, MARGIN), in_a_line(label), INK, font, anchor="mt")
    for i, (prompt, row) in enumerate(zip(prompts, rows)):
        top = line + MARGIN + i * each
        pen.text((MARGIN, top), _fitted(in_a_line(prompt), pen, font, whole.width - 2 * MARGIN), INK, font)
        for j, picture in enumerate(row):
            whole.paste(picture, (MARGIN + j * (width + MARGIN), top + line - MARGIN // 2))
    return whole


def animate(rows: Sequence[Sequence[Any]], prompts: Sequence[str], columns: Sequence[str], path: Path) -> None:
    """Write a GIF that goes through the columns and back; all prompts are side by side in each frame.

    Args:
        prompts: written above each.
    """
    there = [strip([[row[j]] for row in rows], prompts, [label]) for j, label in enumerate(columns)]
    first, *others = [*there, *there[-2:0:-1]]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)


def png_text(facts: Mapping[str, Any]) -> Any:
    """Return texts to save in a PNG: the facts as JSON under "lineas", and the prompt under "Description".

    Args:
        facts: facts of a picture; "prompt" is its prompt.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("Description", facts["prompt"])
    info.add_itxt("Software", written_by("paint"))
    info.add_itxt("lineas", dumps(facts))
    return info


def _enlarged(picture: Any) -> Any:
    """A picture whose sides are whole multiples of its own, at least LEAST."""
    from PIL import Image

    times = max(1, -(-LEAST // min(picture.size)))
    return picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)


def _fitted(text: str, pen: Any, font: Any, width: int) -> str:
    """A text cut to a width."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
