"""LineasError: the only error type, one sentence for the user; errors of other libraries become part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lineas.printable import LONGEST, shortened

DESTROYED = "the model is destroyed: its predictions are not finite; a smaller strength may do."
"""The error for a network whose outputs are not finite."""


class LineasError(ValueError):
    """An error in one sentence: what was given, what was expected, what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error without its full stop; the name of its type if it is empty.

    >>> first_line(ValueError("no such key: 'a'.\\nIf you ...")), first_line(KeyError())
    ("no such key: 'a'", 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__


def kind_of(value: object) -> str:
    """Return the type of a value with its article.

    >>> kind_of([]), kind_of(1), kind_of(None)
    ('a list', 'an int', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def shown(value: object, most: int = LONGEST) -> str:
    """Return the beginning of a value as Python writes it, or its type if Python cannot write it.

    >>> shown("calm"), shown("x" * 10**7, 5), shown(10**5000)
    ("'calm'", "'xxxx...", 'an int')
    """
    try:
        text = repr(value[:most] if isinstance(value, (str, bytes)) else value)
    except Exception:  # a number of too many digits, or an error of a foreign class
        return kind_of(value)
    return shortened(" ".join(text.split()), most)  # tensors are written over several lines


@contextmanager
def needing(sentence: str, extra: str) -> Iterator[None]:
    """Turn a failed import within the block into an error that names the extra of lineas to install.

    >>> with needing("plots need matplotlib", "plots"):
    ...     raise ImportError
    Traceback (most recent call last):
    lineas.errors.LineasError: plots need matplotlib: pip install 'lineas[plots]'.
    """
    try:
        yield
    except ImportError:
        raise LineasError(f"{sentence}: pip install 'lineas[{extra}]'.") from None


@contextmanager
def reading(failure: str, hint: str = "") -> Iterator[None]:
    """Turn an error of another library within the block into one sentence.

    The block should hold only the library's call, so that a bug of lineas is not reported as a bad file.

    Args:
        failure: beginning of the sentence, such as "no model could be loaded from 'm'".
        hint: sentence on what to do; "" for none.

    >>> with reading("no number could be read from 'n'", "Write digits."):
    ...     float("one")
    Traceback (most recent call last):
    lineas.errors.LineasError: no number could be read from 'n': could not convert string to float: 'one'. Write digits.
    """
    try:
        yield
    except (LineasError, MemoryError):
        raise
    except Exception as error:
        speaks = isinstance(error, (OSError, ValueError, RuntimeError)) or not str(error).strip()
        kind = "" if speaks else f"{type(error).__name__}: "
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [first_line(error)]
        line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        reason = line.split(". ")[0].rstrip(".:")[:300]
        raise LineasError(f"{failure}: {kind}{reason}.{hint and f' {hint}'}") from error
