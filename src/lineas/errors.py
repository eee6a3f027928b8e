"""LineasError: the one error type, a sentence for the user; and how others' errors become part of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lineas.printable import LONGEST, shortened

DESTROYED = "the model is destroyed: its predictions are not finite; a smaller strength may do."
"""For texts and pictures of a network whose outputs are no numbers any more."""


class LineasError(ValueError):
    """What was given, what was expected, what to do, in one sentence."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, without its full stop; its type's name where it says nothing.

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
    """Return the beginning of a value as one writes it in Python; its type where that cannot be written.

    >>> shown("calm"), shown("x" * 10**7, 5), shown(10**5000)
    ("'calm'", "'xxxx...", 'an int')
    """
    try:
        text = repr(value[:most] if isinstance(value, (str, bytes)) else value)
    except Exception:  # numbers of too many digits, and whatever a foreign class raises
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
    """Turn whatever another library raises within the block into one sentence.

    The block holds the library's call alone, so that a fault of ours is not taken for one of a file's.

    Args:
        failure: what could not be done, with the file or folder, such as "no model could be loaded from 'm'".
        hint: what to do about it, a sentence; "" for none.

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
        told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        reason = told.split(". ")[0].rstrip(".:")[:300]
        raise LineasError(f"{failure}: {kind}{reason}.{hint and f' {hint}'}") from error
