"""Numbers within bounds: one declaration of each, for the command line, Python, requests and the environment."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lineas.errors import LineasError, kind_of, shown
from lineas.printable import shortened

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?[0-9]{1,1000}")


@dataclass(frozen=True)
class Bounds:
    """The numbers that something may be.

    Args:
        least: the smallest one.
        most: the largest one.
        whole: whether they are whole numbers.
        above: whether the smallest one itself, 0, is left out.
        or_zero: whether 0 is allowed besides.
        shown: the bounds in the place of a value in a help text, where they are no round numbers.
    """

    least: float
    most: float
    whole: bool = False
    above: bool = False
    or_zero: bool = False
    shown: str = ""

    def __str__(self) -> str:
        """The bounds as a sentence says them."""
        kind = "a whole number" if self.whole else "a number"
        begin = f"above {_written(self.least)}, at most" if self.above else f"from {_written(self.least)} to"
        return f"{'0 or ' * self.or_zero}{kind} {begin} {_written(self.most)}"

    @property
    def short(self) -> str:
        """The bounds as a help text shows them in the place of a value."""
        least, most = (f"{bound:g}".replace("e+0", "e").replace("e-0", "e-") for bound in (self.least, self.most))
        return self.shown or f"{'0|' * self.or_zero}{'>' * self.above}{least}..{most}"

    def check(self, name: str, value: Any) -> Any:
        """Return a number within the bounds: an int where they are whole, else a float."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            raise LineasError(f"{name} must be {self}, not {shown(value)}.")
        number: Any = value  # of either kind, which a type checker cannot tell
        value = int(number) if self.whole else _as_float(number)
        if self.or_zero and value == 0:
            return value
        if self.above:
            least = "a positive number"
        else:
            least = "0 or more" if self.least == 0 and not self.whole else f"at least {_written(self.least)}"
        least = "0 or " * self.or_zero + least
        if isinstance(value, float) and not math.isfinite(value):
            kind = "a finite number" if self.least < 0 else f"{least} and finite"
            raise LineasError(f"{name} must be {kind}, not {value}.")
        if value < self.least or (self.above and value == self.least):
            raise LineasError(f"{name} must be {least}, not {shown(value)}.")
        if value > self.most:
            raise LineasError(f"{name} must be at most {_written(self.most)}, not {shown(value)}.")
        return value

    def read(self, name: str, text: str) -> Any:
        """Return the number that a text says, in plain digits."""
        try:
            value = whole(text) if self.whole else number(text)
        except ValueError:
            raise LineasError(f"{name} must be {self}, not {shown(text)}.") from None
        return self.check(name, value)


def number(text: str) -> float:
    """Return the number that a text says in ASCII digits, without the underscores that Python allows.

    >>> number("1e-3"), number(" -.5")
    (0.001, -0.5)
    """
    if not _NUMBER.fullmatch(text.strip(" ")):
        raise ValueError(f"{shortened(text)!r} is no number")
    return float(text)


def whole(text: str) -> int:
    """Return the whole number that a text says in ASCII digits."""
    if not _WHOLE.fullmatch(text.strip(" ")):
        raise ValueError(f"{shortened(text)!r} is no whole number")
    return int(text)


def as_seed(number: int) -> int:
    """Return a number as a seed: itself, or, beyond the largest seed, counted on from 0.

    >>> as_seed(5), as_seed(-1), as_seed(2**64 + 1)
    (5, -1, 1)
    """
    return number if SEED.least <= number <= SEED.most else number % 2**64


def within(bounds: Bounds, option: str | None = None) -> dict[str, Any]:
    """Return the metadata of a field whose numbers are bounded.

    Args:
        option: name on the command line where it is not the field's.
    """
    return {"bounds": bounds, "option": option}


def check_settings(settings: Any) -> None:
    """Hold the fields of a frozen dataclass against their bounds and choices, and keep numbers as plain ones.

    A field whose type names None may be None.

    Args:
        settings: a dataclass whose fields have bounds (see `within`) or are declared as bool or Literal.
    """
    kinds = get_type_hints(type(settings))
    for one in fields(settings):
        value, kind, bounds = getattr(settings, one.name), kinds[one.name], one.metadata.get("bounds")
        if bounds is not None and not (value is None and type(None) in get_args(kind)):
            object.__setattr__(settings, one.name, bounds.check(one.name, value))
        elif kind is bool and not isinstance(value, bool):
            raise LineasError(f"{one.name} must be True or False, not {shown(value)}.")
        elif get_origin(kind) is Literal and value not in get_args(kind):
            *others, last = map(repr, get_args(kind))
            raise LineasError(f"{one.name} must be {', '.join(others)} or {last}, not {shown(value)}.")


def as_texts(name: str, several: Any, kind: str = "prompts") -> list[str]:
    """Return texts as a list, read once.

    Args:
        kind: what each is, for the sentence.

    >>> as_texts("the source", ["caf\\udce9"])
    Traceback (most recent call last):
    lineas.errors.LineasError: number 1 of the source: character 4 of 'caf\\udce9' is no UTF-8; mend or remove it.
    """
    if isinstance(several, (str, bytes)):
        raise LineasError(f"{name} must be a list of {kind}, not one string; write ['...'].")
    try:
        found = list(several)
    except TypeError:
        raise LineasError(f"{name} must be a list of {kind}, not {kind_of(several)}.") from None
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise LineasError(f"{name} must be a list of {kind}, and number {i + 1} of it is {kind_of(text)}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start + 1} of {shown(text)}"
            raise LineasError(f"number {i + 1} of {name}: {where} is no UTF-8; mend or remove it.") from None
    return found


def flag(name: str, text: str) -> bool:
    """Return what a variable of the environment says of a switch; unset or empty is off."""
    said = text.strip().lower()
    if said in ("1", "true", "yes", "on"):
        return True
    if said in ("", "0", "false", "no", "off"):
        return False
    raise LineasError(f"{name} is 1 (true, yes, on) or 0 (false, no, off), not {shown(text)}.")


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MOST = 2**60
"""Bytes that no machine has."""


def as_bytes(text: str | int) -> int:
    """Return a size in bytes, as people write it.

    >>> as_bytes("8GiB"), as_bytes("1.5 GB"), as_bytes(1024)
    (8589934592, 1500000000, 1024)
    """
    match = re.fullmatch(r" *([0-9]+(?:\.[0-9]+)?) *([kmgt]i?)?b? *", str(text).lower())
    size = float(match[1]) * UNITS[match[2] or ""] if match else 0
    if not 1 <= size < MOST:
        raise LineasError(f"a size looks like 8GiB, 500MB or a number of bytes, not {shown(text)}.")
    return int(size)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _written(value: float) -> str:
    """A number in a sentence: whole ones in digits, unless there are many of them."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e16):
        return str(int(value))
    return f"{value:g}"


FLAT = 10**9
"""More of anything than fits anywhere: a number above it is a slip of the hand."""
COUNT = Bounds(1, FLAT, whole=True)
PAIR = Bounds(2, FLAT, whole=True)
SEED = Bounds(-(2**63), 2**64 - 1, whole=True, shown="-2^63..2^64-1")
"""Seeds that torch's generators take."""
STEPS = Bounds(1, 10**7, whole=True)
SEEDS = Bounds(1, 10_000, whole=True)
TOKENS = Bounds(1, 10**6, whole=True)
"""Tokens of a prompt, or added to one."""
TOGETHER = Bounds(1, 10**6, whole=True)
"""Prompts that run at once; more than there are make no difference."""
DENOISING_STEPS = Bounds(1, 1000, whole=True)
"""Noise schedules have a thousand steps."""
SIDE = Bounds(8, 8192, whole=True)
"""Pixels of a picture's side."""
PROCESSES = Bounds(1, 1024, whole=True)
PLACES = Bounds(0, 1000, whole=True)
PORT = Bounds(1, 65535, whole=True)
SHOTS = Bounds(0, 1000, whole=True)
SHOWN = Bounds(0, 10_000, whole=True)
STRENGTH = Bounds(-3e38, 3e38, shown="NUMBER")
"""Strengths that float32 holds; the model's predictions tell which of them destroy it."""
WEIGHT = Bounds(0, 1e9)
"""Weights of a penalty."""
RATE = Bounds(0, 1e30, above=True)
DEVIATIONS = Bounds(0, 1e6, above=True)
GUIDANCE = Bounds(0, 1000)
TEMPERATURE = Bounds(1e-6, 1e6, or_zero=True)
"""Logits over a smaller one are no longer finite."""
PROBABILITY = Bounds(1e-6, 1)
REPETITION = Bounds(1e-3, 1000)
LOSS = Bounds(0, 1)
"""A share that may be lost; 1 itself, all of it, is refused where it makes no sense."""
LARGEST = Bounds(0, 1e6, above=True)
"""The largest of the strengths that are tried."""
