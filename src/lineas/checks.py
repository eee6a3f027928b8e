"""Bounds of numbers, declared once for the command line, Python, requests and the environment."""

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
    """The numbers that a setting may have.

    Args:
        least: smallest number.
        most: largest number.
        whole: whether only whole numbers are allowed.
        above: whether the smallest number itself is excluded.
        or_zero: whether 0 is allowed too.
        shown: text for the bounds in a help text; by default the numbers.
    """

    least: float
    most: float
    whole: bool = False
    above: bool = False
    or_zero: bool = False
    shown: str = ""

    def __str__(self) -> str:
        """Return the bounds for a sentence."""
        kind = "a whole number" if self.whole else "a number"
        begin = f"above {_written(self.least)}, at most" if self.above else f"from {_written(self.least)} to"
        return f"{'0 or ' * self.or_zero}{kind} {begin} {_written(self.most)}"

    @property
    def short(self) -> str:
        """The bounds for a help text."""
        least, most = (f"{bound:g}".replace("e+0", "e").replace("e-0", "e-") for bound in (self.least, self.most))
        return self.shown or f"{'0|' * self.or_zero}{'>' * self.above}{least}..{most}"

    def check(self, name: str, value: Any) -> Any:
        """Return a number within the bounds, as an int if they are whole, else as a float."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            raise LineasError(f"{name} must be {self}, not {shown(value)}.")
        number: Any = value  # a type checker knows neither kind
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
        """Return the number within the bounds that a text gives in plain digits."""
        try:
            value = whole(text) if self.whole else number(text)
        except ValueError:
            raise LineasError(f"{name} must be {self}, not {shown(text)}.") from None
        return self.check(name, value)


def number(text: str) -> float:
    """Return the number that a text gives in ASCII digits, without the underscores that Python allows.

    >>> number("1e-3"), number(" -.5")
    (0.001, -0.5)
    """
    if not _NUMBER.fullmatch(text.strip(" ")):
        raise ValueError(f"{shortened(text)!r} is no number")
    return float(text)


def whole(text: str) -> int:
    """Return the whole number that a text gives in ASCII digits."""
    if not _WHOLE.fullmatch(text.strip(" ")):
        raise ValueError(f"{shortened(text)!r} is no whole number")
    return int(text)


def as_seed(number: int) -> int:
    """Return a number as a seed; beyond the largest seed, counting continues from 0.

    >>> as_seed(5), as_seed(-1), as_seed(2**64 + 1)
    (5, -1, 1)
    """
    return number if SEED.least <= number <= SEED.most else number % 2**64


def within(bounds: Bounds, option: str | None = None) -> dict[str, Any]:
    """Return the metadata of a field with bounds; `option` is its option on the command line if it has another name."""
    return {"bounds": bounds, "option": option}


def check_settings(settings: Any) -> None:
    """Check the fields of a frozen dataclass against their bounds (see `within`), bool or Literal.

    Numbers become int or float. A field whose type includes None, or whose default is None, may be None.
    """
    kinds = get_type_hints(type(settings))
    for one in fields(settings):
        value, kind, bounds = getattr(settings, one.name), kinds[one.name], one.metadata.get("bounds")
        may_be_none = type(None) in get_args(kind) or one.default is None
        if bounds is not None and not (value is None and may_be_none):
            object.__setattr__(settings, one.name, bounds.check(one.name, value))
        elif kind is bool and not isinstance(value, bool):
            raise LineasError(f"{one.name} must be True or False, not {shown(value)}.")
        elif get_origin(kind) is Literal and value not in get_args(kind):
            *others, last = map(repr, get_args(kind))
            raise LineasError(f"{one.name} must be {', '.join(others)} or {last}, not {shown(value)}.")


def as_texts(name: str, several: Any, kind: str = "prompts") -> list[str]:
    """Return texts as a list; `name` and `kind` are for the sentence of an error.

    >>> as_texts("the source", ["caf\\udce9"])
    Traceback (most recent call last):
    lineas.errors.LineasError: number 1 of the source: character 4 of 'caf\\udce9' is no UTF-8; mend or remove it.
    """
    if isinstance(several, (str, bytes)):
        raise LineasError(f"{name} must be a list of {kind}, not one string; write ['...'].")
    try:
        texts = list(several)
    except TypeError:
        raise LineasError(f"{name} must be a list of {kind}, not {kind_of(several)}.") from None
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise LineasError(f"{name} must be a list of {kind}, and number {i + 1} of it is {kind_of(text)}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start + 1} of {shown(text)}"
            raise LineasError(f"number {i + 1} of {name}: {where} is no UTF-8; mend or remove it.") from None
    return texts


def flag(name: str, text: str) -> bool:
    """Return the value of a switch in the environment; an empty text is False."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("", "0", "false", "no", "off"):
        return False
    raise LineasError(f"{name} is 1 (true, yes, on) or 0 (false, no, off), not {shown(text)}.")


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MOST = 2**60
"""More bytes than any machine has."""


def as_bytes(text: str | int) -> int:
    """Return a number of bytes from a size such as "8GiB".

    >>> as_bytes("8GiB"), as_bytes("1.5 GB"), as_bytes(1024)
    (8589934592, 1500000000, 1024)
    """
    match = re.fullmatch(r" *([0-9]+(?:\.[0-9]+)?) *([kmgt]i?)?b? *", str(text).lower())
    size = float(match[1]) * UNITS[match[2] or ""] if match else 0
    if not 1 <= size < MOST:
        raise LineasError(f"a size looks like 8GiB, 500MB or a number of bytes, not {shown(text)}.")
    return int(size)


def as_number(value: Any, what: str = "the strength") -> float:
    """Return a finite number of Python, numpy or a tensor as a float; `what` is its name in the error.

    >>> as_number(1), as_number(True)
    Traceback (most recent call last):
    lineas.errors.LineasError: the strength must be a finite number, not True.
    """
    scalar = value.item() if getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", False) else value
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Real):
        raise LineasError(f"{what} must be a finite number, not {shown(value)}.")
    number = _as_float(scalar)
    if not math.isfinite(number):
        raise LineasError(f"{what} must be a finite number, not {number}.")
    return number


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _written(value: float) -> str:
    """Return a number for a sentence, a whole one in digits unless it is long."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e16):
        return str(int(value))
    return f"{value:g}"


FLAT = 10**9
"""A larger number is a typing error."""
COUNT = Bounds(1, FLAT, whole=True)
PAIR = Bounds(2, FLAT, whole=True)
SEED = Bounds(-(2**63), 2**64 - 1, whole=True, shown="-2^63..2^64-1")
"""The seeds of torch's generators."""
STEPS = Bounds(1, 10**7, whole=True)
SEEDS = Bounds(1, 10_000, whole=True)
TOKENS = Bounds(1, 10**6, whole=True)
"""Numbers of tokens of a prompt, or added to it."""
TOGETHER = Bounds(1, 10**6, whole=True)
"""Numbers of prompts that run at once."""
DENOISING_STEPS = Bounds(1, 1000, whole=True)
"""Noise schedules have a thousand steps."""
SIDE = Bounds(8, 8192, whole=True)
"""Numbers of pixels of a side."""
PROCESSES = Bounds(1, 1024, whole=True)
PLACES = Bounds(0, 1000, whole=True)
PORT = Bounds(1, 65535, whole=True)
SHOTS = Bounds(0, 1000, whole=True)
SHOWN = Bounds(0, 10_000, whole=True)
STRENGTH = Bounds(-3e38, 3e38, shown="NUMBER")
"""The strengths that float32 can hold."""
DIVERGENCE = Bounds(0, 100, above=True)
WEIGHT = Bounds(0, 1e9)
"""Weights of a penalty."""
RATE = Bounds(0, 1e30, above=True)
DEVIATIONS = Bounds(0, 1e6, above=True)
GUIDANCE = Bounds(0, 1000)
TEMPERATURE = Bounds(1e-6, 1e6, or_zero=True)
"""Logits divided by a smaller one are not finite."""
PROBABILITY = Bounds(1e-6, 1)
REPETITION = Bounds(1e-3, 1000)
LOSS = Bounds(0, 1)
"""The share that may be lost."""
LARGEST = Bounds(0, 1e6, above=True)
"""The largest strength to try."""
