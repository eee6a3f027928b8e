"""LineasError: the one error type, a sentence for the user; and how others' errors become part of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

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


def shown(value: object, most: int = 80) -> str:
    """Return the beginning of a value as one writes it in Python; its type where that cannot be written.

    >>> shown("calm"), shown("x" * 10**7, 5), shown(10**5000)
    ("'calm'", "'xxxx...", 'an int')
    """
    try:
        text = repr(value[:most] if isinstance(value, (str, bytes)) else value)
    except Exception:  # numbers of too many digits, and whatever a foreign class raises
        return kind_of(value)
    text = " ".join(text.split())  # tensors are written over several lines
    return text if len(text) <= most else f"{text[:most]}..."


@contextmanager
def reading(failure: str, hint: str = "") -> Iterator[None]:
    """Turn whatever another library raises within the block into one sentence.

    The block holds the library's call alone, so that a fault of ours is not taken for one of a file's.

    Args:
        failure: what could not be done, with the file or folder, such as "no model could be loaded from 'm'".
        hint: what to do about it, a sentence; "" for none.

    Raises:
        LineasError: `failure`, the first sentence of the library's error, and the hint. The library's error is its
            cause, which `LINEAS_DEBUG=1` shows.

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


def check_texts(texts: object, what: str = "prompt") -> None:
    """Refuse what no tokenizer reads: anything but strings, and strings that are no Unicode text.

    Args:
        texts: what was given for a list of texts.
        what: one of them, for the message.

    Raises:
        LineasError: naming the first that cannot be read.

    >>> check_texts(["caf\\udce9"])
    Traceback (most recent call last):
    lineas.errors.LineasError: the prompt 'caf\\udce9' is no text: character 4 is no UTF-8; mend or remove it.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Collection):
        raise LineasError(f"a list of {what}s is needed, not {type(texts).__name__}; write ['...'].")
    for text in texts:
        if not isinstance(text, str):
            raise LineasError(f"a {what} is a string, not {type(text).__name__}: {str(text)[:80]!r}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LineasError(
                f"the {what} {text!r:.80} is no text: character {error.start + 1} is no UTF-8; mend or remove it."
            ) from None
