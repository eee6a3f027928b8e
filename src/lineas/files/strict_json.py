"""Strict JSON, which readers in all languages understand alike; an error names the place of what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineas.errors import LineasError, first_line, kind_of, shown

DEEPEST = 400
"""Maximum depth of lists and objects inside each other."""
LARGEST = 2**64
"""Bound of the absolute value of whole numbers."""
NAME = re.compile(r"[\w-]{1,40}", re.ASCII)
MOST_BYTES = 2**26
"""Maximum number of bytes of a file of JSON: 64 MiB."""


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text, or of its UTF-8 bytes.

    It refuses NaN, Infinity, whole numbers of more than 64 bits, a key twice, half a surrogate pair and deep nesting.

    >>> loads('{"a": [1, null]}')
    {'a': [1, None]}
    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    lineas.errors.LineasError: its JSON has the key 'a' twice in one object.
    """
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            parse_constant=_no_number,
            object_pairs_hook=_each_once,
        )
    except LineasError:
        raise
    except RecursionError:
        raise LineasError("its JSON is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise LineasError(f"it is no text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}).") from None
    except ValueError as error:
        raise LineasError(f"it is no JSON: {first_line(error)}.") from None
    check(value)
    return value


def dumps(value: Any, indent: int | None = 1, gaps: bool = False) -> str:
    """Return the JSON text of a value, which `loads` reads.

    Args:
        value: dicts with texts as keys, lists and tuples, texts, numbers, bools and None.
        indent: number of spaces of each level; None for one line.
        gaps: whether to write null for a number that is not finite, instead of refusing it.
    """
    try:
        value = _with_gaps(value) if gaps else value
    except RecursionError:
        raise LineasError("its JSON is nested too deeply.") from None
    check(value)
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes."""
    try:
        if not file.is_file():
            raise LineasError(f"{file.name} is {'no file' if file.exists() else 'missing'}.")
        if (size := file.stat().st_size) > most:
            raise LineasError(f"{file.name} has {size:,} bytes, and at most {most:,} are expected.")
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise LineasError(f"{file.name} cannot be read: {error.strerror or first_line(error)}.") from None
    if len(content) > most:
        raise LineasError(f"{file.name} has more than the {most:,} bytes that are expected.")
    return content


def check(value: Any) -> None:
    """Refuse a value that strict JSON cannot hold."""
    left: list[tuple[Any, Any, int]] = [(value, None, 0)]  # a value, its place, its depth
    while left:
        one, place, depth = left.pop()
        if depth > DEEPEST:
            raise LineasError(f"its JSON is nested more than {DEEPEST} deep.")
        if isinstance(one, Mapping):
            for key, inner in one.items():
                if not isinstance(key, str):
                    raise LineasError(f"{_written(place)} has the key {shown(key)}, and in JSON all keys are texts.")
                _check_text(key, place)
                left.append((inner, (place, key), depth + 1))
        elif isinstance(one, (list, tuple)):
            left += [(inner, (place, i), depth + 1) for i, inner in enumerate(one)]
        elif isinstance(one, str):
            _check_text(one, place)
        elif isinstance(one, float):
            if not math.isfinite(one):
                raise LineasError(f"{_written(place)} is {one}, which JSON cannot hold.")
        elif isinstance(one, int):
            if not -LARGEST < one < LARGEST:
                raise LineasError(f"{_written(place)} is a whole number of more than 64 bits.")
        elif one is not None:
            raise LineasError(f"{_written(place)} is {kind_of(one)}, which JSON cannot hold.")


def _check_text(text: str, place: Any) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise LineasError(f"{_written(place)} has half a surrogate pair, which is no text.") from None


def _written(place: Any) -> str:
    """Return a place as a text, such as `facts.cost[3]`."""
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(step_to(step))
    return "".join(reversed(steps)).removeprefix(".")[:200] or "it"


def step_to(key: str | int) -> str:
    """Return the end of a place for a key or an index; keys that are no names are quoted.

    >>> "facts" + step_to("cost") + step_to(3) + step_to("a b")
    "facts.cost[3]['a b']"
    """
    return f".{key}" if isinstance(key, str) and NAME.fullmatch(key) else f"[{shown(key)}]"


def _with_gaps(value: Any) -> Any:
    """Return the value with None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _with_gaps(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_gaps(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_number(name: str) -> Any:
    raise LineasError(f"its JSON has {name}, which is no number of JSON.")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise LineasError(f"its JSON has the key {shown(key)} twice in one object.")
        members[key] = value
    return members
