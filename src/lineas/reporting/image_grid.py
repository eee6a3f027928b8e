"""Strips of pictures, one row for each prompt and one column for each strength, and animations of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineas.files.ownership import written_by
from lineas.files.strict_json import dumps
from lineas.printable import in_a_line

LEAST = 160
"""Smallest side of a picture in a strip, in pixels; smaller pictures are enlarged."""
MARGIN = 12
TEXT = 15
"""Smallest height of the letters, in pixels; in a wide strip they are larger."""
MILLISECONDS = 350
"""Time of each frame of an animation."""
INK, PAPER = (30, 30, 30), (255, 255, 255)


def strip(rows: Sequence[Sequence[Any]], prompts: Sequence[str], columns: Sequence[str]) -> Any:
    """Return one picture (PIL) of many.

    Args:
        rows: pictures of one size, by prompt and column.
        prompts: text above each row.
        columns: text above each column.
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
    """Write a GIF that goes through the columns and back; all prompts are side by side in each frame."""
    there = [strip([[row[j]] for row in rows], prompts, [label]) for j, label in enumerate(columns)]
    first, *others = [*there, *there[-2:0:-1]]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)


def png_text(facts: Mapping[str, Any]) -> Any:
    """Return texts to save in a PNG: the facts as JSON under "lineas", and their "prompt" under "Description"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("Description", facts["prompt"])
    info.add_itxt("Software", written_by("paint"))
    info.add_itxt("lineas", dumps(facts))
    return info


def _enlarged(picture: Any) -> Any:
    """Return a picture enlarged by a whole factor, so that its sides are at least LEAST."""
    from PIL import Image

    times = max(1, -(-LEAST // min(picture.size)))
    return picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)


def _fitted(text: str, pen: Any, font: Any, width: int) -> str:
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
