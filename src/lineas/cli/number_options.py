"""Options that are numbers: read in plain digits and held against their bounds before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from lineas.checks import SIDE, STRENGTH, Bounds
from lineas.checks import number as as_number
from lineas.errors import LineasError
from lineas.printable import shortened

CALIBRATED = "calibrated"


def number(name: str, bounds: Bounds, help: str, several: str = "") -> Any:
    """An option of one number, or of several.

    Args:
        name: as it is written, `--steps`.
        bounds: of each number.
        help: what it is.
        several: a letter for a value where the option takes several.
    """
    metavar = f"{several} ({bounds.short}) ..." if several else bounds.short
    return _option(name, metavar, help, lambda text: bounds.read(name, text))


def strength_option(help: str, several: bool = False) -> Any:
    """An option --strength whose values are numbers or "calibrated"."""
    return _option("--strength", "S ..." if several else "S", help, as_strength_or_calibrated)


def size_option(help: str) -> Any:
    """An option --size, of pictures."""
    return _option("--size", "HEIGHTxWIDTH", help, as_size)


def as_size(text: str) -> tuple[int, int]:
    """Read `512x768` as height and width.

    Raises:
        LineasError: when it is no size, or one of no picture.

    >>> as_size("512x768"), as_size("512")
    ((512, 768), (512, 512))
    """
    height, _, width = text.lower().partition("x")
    sides = [side for side in (height, width or height) if side.isascii() and side.isdigit()]
    if len(sides) < 2:
        raise LineasError(f"a size looks like 512x768 (height, width) or 512, not {shortened(repr(text))}.")
    high, wide = (SIDE.read("a side of --size", side) for side in sides)
    return high, wide


def as_strength_or_calibrated(text: str) -> str | float:
    """Read a strength: a number, or "calibrated", which an intervention says.

    Raises:
        LineasError: when it is neither, or out of bounds.
    """
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
    """An option whose values are read when the command line is.

    They are read in the callback, not by typer's parser, which would put a sentence of its own around ours.
    """

    def checked(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [read(one) if isinstance(one, str) else one for one in value]
        return read(value) if isinstance(value, str) else value

    return typer.Option(name, metavar=metavar, help=help, parser=_as_it_is, callback=checked)


def _as_it_is(text: Any) -> Any:
    return text
