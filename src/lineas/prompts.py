"""Prompt sets from txt, csv, tsv, jsonl and parquet files, from the hub, and those that ship with lineas."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lineas.errors import LineasError, first_line

HUB = "hf://datasets/"
SHIPPED = "lineas:"
DATA = Path(__file__).parent / "data"


def read_prompts(source: str | Path) -> list[str]:
    """The prompts of `FILE[:column]`, in order; blank ones are left out.

    Args:
        source: a txt file (a prompt a line), or a csv, tsv, jsonl or parquet file with a column of text; a column of
            nested JSON is written with dots (`prompt.text`); without a column "text", or the only one, is taken.
            `hf://datasets/OWNER/NAME/FILE[:column]` is fetched from the hub, `lineas:polite/source` ships with lineas.

    Raises:
        LineasError: when the file is missing, empty, not UTF-8, or has no such column.
    """
    path, column = _located(str(source))
    read: dict[str, Callable[[Path], list[Any]]] = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() in read:
        rows = read[path.suffix.lower()](path)
        prompts = _column(path, rows, column) if rows else []
    elif column is not None:
        raise LineasError(f"{path} is read as plain text and has no columns; leave out ':{column}'.")
    else:
        prompts = _text(path).split("\n")
    kept = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not kept:
        raise LineasError(f"{path} holds no prompts; put one on each line.")
    for prompt in kept:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise LineasError(f"{path} holds half of a character (a lone surrogate) in {prompt[:40]!a}; mend it.")
    return kept


def draw(prompts: Sequence[str], count: int | None, seed: int) -> list[str]:
    """`count` of the prompts at random without repetition, the same for the same seed; None takes all in order.

    >>> draw(["a", "b", "c"], 2, seed=0) == draw(["a", "b", "c"], 2, seed=0)
    True
    """
    if count is None:
        return list(prompts)
    if count < 1:
        raise LineasError(f"at least 1 sample must be asked for, not {count}.")
    if count > len(prompts):
        raise LineasError(f"{count} samples were asked for and {len(prompts)} prompts are there; ask for fewer.")
    return random.Random(seed).sample(list(prompts), count)


def described(prompts: Sequence[str]) -> dict[str, Any]:
    """What is recorded of prompts instead of themselves: how many, and the sha256 of their lines."""
    return {"count": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}


def _located(source: str) -> tuple[Path, str | None]:
    """The file on disk and the column, of `FILE[:column]`."""
    if source.startswith(SHIPPED):
        path = DATA / f"{source.removeprefix(SHIPPED)}.txt"
        if not path.is_file():
            names = ", ".join(sorted(f"{SHIPPED}{p.parent.name}/{p.stem}" for p in DATA.glob("*/*.txt")))
            raise LineasError(f"no prompts called {source} ship with lineas; these do: {names}.")
        return path, None
    name, colon, column = source.rpartition(":")
    if not colon or Path(source).exists() or "/" in column:
        name, column = source, ""
    if name.startswith(HUB):
        return _from_hub(name), column or None
    path = Path(name)
    if path.is_dir():
        raise LineasError(f"{path} is a folder; name a file of prompts.")
    if not path.exists():
        raise LineasError(f"there is no file {path}; give a txt, csv, jsonl or parquet file as FILE[:column].")
    return path, column or None


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = address.removeprefix(HUB).split("/", 2)
    if len(parts) < 3:
        raise LineasError(f"{address} is incomplete; write {HUB}OWNER/NAME/FILE[:column].")
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2], repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise LineasError(f"{address} could not be fetched: {first_line(error)}.") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineasError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise LineasError(f"{path} cannot be read: {error.strerror}.") from None


def _csv(path: Path) -> list[Any]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return list(csv.DictReader(io.StringIO(_text(path)), delimiter=delimiter))


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise LineasError(f"{path} line {number} is not JSON; a jsonl file has one JSON object a line.") from None
    return rows


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise LineasError(f"reading {path} needs pyarrow: pip install pyarrow.") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise LineasError(f"{path} is not a readable parquet file: {first_line(error)}.") from None


def _column(path: Path, rows: list[Any], column: str | None) -> list[str]:
    first = rows[0]
    if isinstance(first, str):
        first, rows = {"text": ""}, [{"text": row} for row in rows]
    if not isinstance(first, dict):
        raise LineasError(f"{path} holds {type(first).__name__}s, expected objects with a column of text.")
    if column is None:
        column = "text" if "text" in first else next(iter(first)) if len(first) == 1 else None
    if column is None:
        raise LineasError(f"{path} has several columns ({', '.join(first)}); say which: {path}:COLUMN.")
    prompts = []
    for number, row in enumerate(rows, 1):
        value: Any = row
        for key in [column] if isinstance(row, dict) and column in row else column.split("."):
            if not isinstance(value, dict) or key not in value:
                raise LineasError(f"{path} has no column '{column}' (row {number}); it has {', '.join(first)}.")
            value = value[key]
        if not isinstance(value, str):
            raise LineasError(f"{path} row {number}: column '{column}' is {type(value).__name__}, expected text.")
        prompts.append(value)
    return prompts
