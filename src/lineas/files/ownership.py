"""Ownership of files: lineas replaces only files that it wrote, and only with consent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files.steady_reads import steadily

MARK = ".lineas.json"
"""The file in each folder of lineas with its kind and its own files, with their sizes and digests."""
BEGINNING = 2**16
"""Number of bytes at the beginning of a file that hold the signature of lineas."""


@dataclass(frozen=True)
class FolderKind:
    """One kind of folder that lineas writes.

    Args:
        name: name in sentences, such as "an intervention".
        mark: name in the mark.
        last: file that identifies the kind; it is written last.
        unmarked: function that returns the files of a folder by lineas 0.1.0, which wrote no marks.
    """

    name: str
    mark: str
    last: str
    unmarked: Callable[[Path], Collection[str]] = lambda folder: ()


@dataclass(frozen=True)
class FileKind:
    """One kind of single file that lineas writes.

    Args:
        name: name in sentences, such as "a report that lineas wrote".
        sign: pattern of the signature of lineas at the beginning.
    """

    name: str
    sign: bytes


HTML = FileKind("a report that lineas wrote", rb'<meta name="generator" content="lineas')
GGUF = FileKind("a control vector that lineas wrote", rb"lineas\.version")
PNG = FileKind("a picture that lineas wrote", rb"Software\0lineas")


def json_of(verb: str) -> FileKind:
    """Return the kind of the JSON that a verb of the command line writes."""
    return FileKind(f"JSON that lineas {verb} wrote", rb'"written_by": "lineas [^"\n]*, %s"' % re.escape(verb).encode())


def written_by(verb: str = "") -> str:
    """Return the signature of lineas."""
    try:
        signed = f"lineas {version('lineas')}"
    except PackageNotFoundError:  # run from its sources
        signed = "lineas of its sources"
    return f"{signed}, {verb}" if verb else signed


def check_folder(path: Path, overwrite: bool, kind: FolderKind) -> None:
    """Refuse to replace anything but an unchanged folder of this kind by lineas, and that too without `overwrite`."""
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise LineasError(f"{path} exists already; choose another folder or pass --force (overwrite=True).")
    steadily(path, lambda place: own_files(place, kind, path))


def own_files(path: Path, kind: FolderKind, named: Path | None = None) -> frozenset[str]:
    """Return the names of the files of lineas in a folder; `named` is the user's name of the folder."""
    named = path if named is None else named

    def other(like: str = "") -> LineasError:
        return LineasError(
            f"{named} exists and is not {kind.name}{like}, so it is not overwritten; choose another folder."
        )

    if not path.is_dir():
        raise other()
    marked = read_mark(path)
    if marked is None:
        unmarked = frozenset(kind.unmarked(path))
        if not unmarked and any(path.iterdir()):
            raise other(" that lineas wrote" if (path / kind.last).exists() else "")
        return unmarked
    if marked.get("kind") != kind.mark:
        raise other()
    changed = [
        name
        for name, facts in marked["files"].items()
        if is_changed(path / name, facts) or any((path / above).is_symlink() for above in Path(name).parents[:-1])
    ]
    if changed:
        raise LineasError(
            f"{named / changed[0]} was changed after lineas wrote it, so it is not overwritten; move it away, or "
            "choose another folder."
        )
    return frozenset(name for name in marked["files"] if (path / name).is_file()) | {MARK}


def check_file(path: Path, overwrite: bool, kind: FileKind) -> None:
    """Refuse to replace anything but a file of this kind by lineas, and that too without `overwrite`.

    Devices and pipes need no consent.
    """
    if path.is_dir():
        raise LineasError(f"{path} is a folder; name a file.")
    if not path.is_file():
        return
    if not overwrite:
        raise LineasError(f"{path} exists already; choose another file or pass --force.")
    with path.open("rb") as file:
        if path.name == MARK or not re.search(kind.sign, file.read(BEGINNING)):
            raise LineasError(f"{path} is not {kind.name}, so it is not overwritten; choose another file.")


def read_mark(folder: Path) -> dict[str, Any] | None:
    """Return the mark of a folder; None if there is no valid one."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_whole = isinstance(mark, dict) and isinstance(mark.get("kind"), str) and isinstance(mark.get("files"), dict)
    return mark if is_whole and all(_is_inside(name) for name in mark["files"]) else None


def write_mark(folder: Path, kind: FolderKind) -> frozenset[str]:
    """Write the mark of a folder that lineas wrote completely, and return the names of all its files."""
    facts = {name: file_facts(folder / name) for name in files_in(folder) if name != MARK}
    (folder / MARK).write_text(mark_text(kind.mark, facts), encoding="utf-8")
    return frozenset(facts) | {MARK}


def mark_text(kind: str, files: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """Return the text of a mark.

    Args:
        files: facts of each file by name; two of them in a list while the file is replaced.
        settings: settings of the work, for a working folder.
    """
    mark = {"written_by": written_by(), "kind": kind, "files": dict(files)}
    mark |= {} if settings is None else {"settings": dict(settings)}
    return json.dumps(mark, indent=1, ensure_ascii=False) + "\n"


def files_in(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder, also of links and devices."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def file_facts(file: Path) -> dict[str, Any]:
    """Return the size and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while piece := opened.read(2**20):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def is_changed(file: Path, facts: Any) -> bool:
    """Return whether a file exists and differs from these facts, or from all facts in a list."""
    if file.is_symlink() or not file.exists():
        return file.is_symlink()
    size = file.stat().st_size
    several = facts if isinstance(facts, list) else [facts]
    possible = [one for one in several if isinstance(one, dict) and one.get("bytes") == size]
    return not possible or not file.is_file() or file_facts(file) not in possible


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)
