"""Prompt sets from txt, csv, tsv, jsonl and parquet files, from the hub, and those that ship with lineas."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lineas.checks import SEED
from lineas.errors import LineasError, first_line
from lineas.printable import shortened

HUB = "hf://datasets/"
SHIPPED = "lineas:"
DATA = Path(__file__).parent / "data"
GIVEN = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Pipes of a shell that are read; another pipe might never end."""
FILES = "txt, csv, tsv, jsonl, json or parquet"
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "is a spreadsheet; save it as .csv"),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub"), "is a document; save its text as .txt"),
    **dict.fromkeys((".html", ".htm", ".xml"), "is markup; save its text as .txt, or its rows as .csv"),
    **dict.fromkeys((".yaml", ".yml", ".toml"), "is no list of texts; save them as .txt or .jsonl"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"), "is compressed; unpack it first"),
    **dict.fromkeys(
        (".arrow", ".feather", ".orc", ".avro", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".db", ".sqlite"),
        "is no text; save its rows as .parquet or .jsonl",
    ),
}
"""Suffixes of files of other kinds, and what to do with them."""


def read_prompts(source: str | Path) -> list[str]:
    """Return the prompts of `FILE[:column]` in order, without empty ones.

    Args:
        source: txt file (one prompt on each line), or csv, tsv, jsonl (ndjson), json (a list) or parquet file with a
            column of text. A column of nested JSON is written with dots (`prompt.text`). The default column is "text",
            or the only one. `hf://datasets/OWNER/NAME/FILE[:column]` is downloaded from the hub, and
            `lineas:polite/source` ships with lineas.

    Raises:
        LineasError: when the file is missing, empty, not UTF-8, of another kind than its suffix, or has no such column.
    """
    path, column = _located(str(source))
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise LineasError(f"{path} {OTHERS[suffix]}.")
    read: dict[str, Callable[[Path], list[Any]]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".parquet": _parquet,
    }
    if suffix in read:
        rows = read[suffix](path)
        prompts = _column(path, rows, column) if rows else []
    elif column is not None:
        raise LineasError(f"{path} is read as plain text and has no columns; leave out ':{column}'.")
    else:
        prompts = _text(path).split("\n")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise LineasError(f"{path} holds no prompts; put one on each line.")
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise LineasError(f"{path} holds half of a character (a lone surrogate) in {prompt[:40]!a}; mend it.")
    return prompts


def draw(prompts: Sequence[str], count: int | None, seed: int) -> list[str]:
    """Return `count` random prompts without repetition, the same for the same seed; None for all, in order.

    >>> draw(["a", "b", "c"], 2, seed=0) == draw(["a", "b", "c"], 2, seed=0)
    True
    """
    if count is None:
        return list(prompts)
    SEED.check("the seed", seed)
    if count < 1:
        raise LineasError(f"at least 1 sample must be asked for, not {count}.")
    if count > len(prompts):
        raise LineasError(f"{count} samples were asked for and {len(prompts)} prompts are there; ask for fewer.")
    return random.Random(seed).sample(list(prompts), count)


def described(prompts: Sequence[str]) -> dict[str, Any]:
    """Return the facts to record about prompts: their number, and the sha256 of their lines."""
    return {"count": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}


def _located(source: str) -> tuple[Path, str | None]:
    """Return the file on disk and the column of `FILE[:column]`."""
    if source.startswith(SHIPPED):
        path = DATA / f"{source.removeprefix(SHIPPED)}.txt"
        if not path.is_file():
            names = ", ".join(sorted(f"{SHIPPED}{p.parent.name}/{p.stem}" for p in DATA.glob("*/*.txt")))
            raise LineasError(f"no prompts called {source} ship with lineas; these do: {names}.")
        return path, None
    name, colon, column = source.rpartition(":")
    if not colon or _kind(Path(source)) is not None or "/" in column:
        name, column = source, ""
    if name.startswith(HUB):
        return _from_hub(name), column or None
    path = Path(name)
    kind = _kind(path)
    if kind is None:
        raise LineasError(f"there is no file {path}; give a {FILES} file as FILE[:column].")
    if stat.S_ISDIR(kind):
        raise LineasError(f"{path} is a folder; name a file of prompts.")
    if not stat.S_ISREG(kind) and not str(path).startswith(GIVEN):
        raise LineasError(f"{path} is no regular file; write the prompts into one and name that.")
    return path, column or None


def _kind(path: Path) -> int | None:
    """Return the mode of a file or folder; None if there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except PermissionError:
        raise LineasError(f"{path} cannot be reached: permission denied.") from None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = address.removeprefix(HUB).split("/", 2)
    if len(parts) < 3:
        raise LineasError(f"{address} is incomplete; write {HUB}OWNER/NAME/FILE[:column].")
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2], repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise LineasError(f"{address} could not be fetched: {first_line(error)}.") from None


def _text(path: Path, newline: str | None = None) -> str:
    """Return the text of a file; `newline=""` leaves the ends of lines as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise LineasError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise LineasError(f"{path} cannot be read: {error.strerror}.") from None


def _csv(path: Path) -> list[Any]:
    """Return the rows of a table; each must have the fields that the first line names."""
    name, delimiter = ("tsv", "\t") if path.suffix.lower() == ".tsv" else ("csv", ",")
    text = _text(path, newline="")
    rows = list(_table_rows(path, name, text, delimiter))
    if not rows:
        return []
    (_, header), *body = rows
    _check_header(path, header, delimiter, text)
    for number, row in body:
        if len(row) != len(header):
            more = "more" if len(row) > len(header) else "fewer"
            remedy = f"put a field with '{delimiter}' in it in quotes" if delimiter == "," else "mend that line"
            raise LineasError(
                f"{path} line {number} has {more} fields ({len(row)}) than the first line names ({len(header)}); "
                f"{remedy}."
            )
    return [dict(zip(header, row)) for _, row in body]


def _table_rows(path: Path, name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its last line."""
    longest = csv.field_size_limit()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(max(longest, len(text) + 1))  # this limit is the process's; a long text is no mistake
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise LineasError(
            f"{path} line {reader.line_num} is no {name}: {first_line(error)}; mend that line (a quote within a "
            "quoted field is doubled)."
        ) from None
    finally:
        csv.field_size_limit(longest)


def _check_header(path: Path, header: list[str], delimiter: str, text: str) -> None:
    """Refuse a first line that names no columns, and warn of one that looks like a prompt."""
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise LineasError(f"{path} has two columns of the name {shortened(twice[0])!r}; give each its own.")
    if len(header) > 1:
        return
    others = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    between = next((sign for sign in others if sign != delimiter and sign in header[0]), None)
    if between is not None and between != ",":
        raise LineasError(f"{path} is separated by {others[between]}; save it with commas, or with tabs as .tsv.")
    if between == "," and "," in text.split("\n", 1)[0]:
        raise LineasError(f"{path} is separated by commas; save it with tabs, or as .csv.")
    if len(header[0].split()) > 1 or header[0].strip()[-1:] in tuple(".!?"):
        warnings.warn(
            f"the first line of {path}, {shortened(header[0])!r}, is taken for the column's name and not for a prompt; "
            "if it is one, save the file as .txt, or put a line with the column's name above it.",
            stacklevel=2,
        )


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(_parsed(line))
            except json.JSONDecodeError:
                raise LineasError(
                    f"{path} line {number} is not JSON; a jsonl file has one JSON object a line."
                ) from None
            except ValueError as error:
                raise LineasError(f"{path} line {number} cannot be read: {error}.") from None
    return rows


def _json(path: Path) -> list[Any]:
    """Return a list, or the objects of a file that has one on each line, as many json files do."""
    try:
        whole = _parsed(_text(path))
    except json.JSONDecodeError:
        return _jsonl(path)
    except ValueError as error:
        raise LineasError(f"{path} cannot be read: {error}.") from None
    return whole if isinstance(whole, list) else [whole]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_whole, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply; flatten it") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number in it has {len(digits)} digits") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shortened(twice)!r} comes twice in one object")
    return members


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise LineasError(f"reading {path} needs pyarrow: pip install pyarrow.") from None
    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.lib.ArrowException) as error:
        raise LineasError(f"{path} is not a readable parquet file: {first_line(error)}.") from None
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise LineasError(f"{path} has two columns of the name {shortened(twice[0])!r}; give each its own.")
    return rows


def _column(path: Path, rows: list[Any], column: str | None) -> list[str]:
    first = rows[0]
    if isinstance(first, str):
        if column is not None:
            raise LineasError(f"{path} holds texts and has no columns; leave out ':{column}'.")
        rows, column = [{"text": row} if isinstance(row, str) else row for row in rows], "text"
        first = rows[0]
    if not isinstance(first, dict):
        raise LineasError(f"{path} holds {type(first).__name__}s, expected objects with a column of text.")
    if column is None:
        column = "text" if "text" in first else next(iter(first)) if len(first) == 1 else None
    if column is None:
        raise LineasError(f"{path} has several columns ({_names(first)}); say which: {path}:COLUMN.")
    prompts = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise LineasError(f"{path} row {number} is {type(row).__name__}, unlike the first row; mend it.")
        value: Any = row
        for key in [column] if column in row else column.split("."):
            if not isinstance(value, dict) or key not in value:
                raise LineasError(f"{path} has no column '{column}' (row {number}); it has {_names(first)}.")
            value = value[key]
        if not isinstance(value, str):
            raise LineasError(f"{path} row {number}: column '{column}' is {type(value).__name__}, expected text.")
        prompts.append(value)
    return prompts


def _names(row: dict[str, Any]) -> str:
    """Return the columns of a row, for a sentence."""
    return shortened(", ".join(row), 400) or "none"
