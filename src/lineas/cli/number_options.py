"""Options that are numbers, strengths or sizes, which are read and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from lineas.checks import SIDE, STRENGTH, Bounds
from lineas.checks import number as as_number
from lineas.errors import LineasError
from lineas.printable import as_label, shortened

CALIBRATED = "calibrated"


def number(name: str, bounds: Bounds, help: str, several: str = "") -> Any:
    """Return an option of one number, or of several, for each of which the letter `several` stands in the help."""
    metavar = f"{several} ({bounds.short}) ..." if several else bounds.short
    return _option(name, metavar, help, lambda text: bounds.read(name, text))


def strength_option(help: str) -> Any:
    """Return an option --strength whose value is a number or "calibrated"."""
    return _option("--strength", "S", help, as_strength_or_calibrated)


def strengths_option(default: Sequence[float]) -> Any:
    """Return an option --strength whose values are numbers or "calibrated"; its help names the default."""
    usual = ", ".join(map(as_label, default))
    help = f"Strengths to compare: numbers, or calibrated; default: {usual}."
    return _option("--strength", "S ...", help, as_strength_or_calibrated)


def size_option(help: str) -> Any:
    """Return an option --size, for the size of pictures."""
    return _option("--size", "HEIGHTxWIDTH", help, as_size)


def as_size(text: str) -> tuple[int, int]:
    """Return the height and the width that a text such as "512x768" gives.

    >>> as_size("512x768"), as_size("512")
    ((512, 768), (512, 512))
    """
    height, _, width = text.lower().partition("x")
    sides = [side for side in (height, width or height) if side.isascii() and side.isdigit()]
    if len(sides) < 2:
        raise LineasError(f"a size looks like 512x768 (height, width) or 512, not {shortened(repr(text))}.")
    rows, columns = (SIDE.read("a side of --size", side) for side in sides)
    return rows, columns


def as_strength_or_calibrated(text: str) -> str | float:
    """Return the strength that a text gives: a number, or "calibrated" as it is."""
    if text == CALIBRATED:
        return text
    try:
        value = as_number(text)
    except ValueError:
        raise LineasError(
            f"--strength: a strength is a number or '{CALIBRATED}', not {shortened(repr(text))}."
        ) from None
    return STRENGTH.check("--strength", value)


def _option(name: str, metavar: str, help: str, read: Callable[[str], Any]) -> Any:
    """Return an option whose values are read together with the command line.

    They are read in the callback and not by typer's parser, which would wrap our error in a sentence of its own.
    """

    def checked(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [read(one) if isinstance(one, str) else one for one in value]
        return read(value) if isinstance(value, str) else value

    return typer.Option(name, metavar=metavar, help=help, parser=_unchanged, callback=checked)


def _unchanged(text: Any) -> Any:
    return text
