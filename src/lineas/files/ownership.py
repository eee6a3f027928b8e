"""Ownership of files: only what lineas wrote is ever replaced, and only with consent."""

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
"""In every folder that lineas writes: its kind, and the files it wrote there with their sizes and digests."""
BEGINNING = 2**16
"""Bytes of a single file in which lineas says that it wrote it."""


@dataclass(frozen=True)
class FolderKind:
    """One kind of folder that lineas writes.

    Args:
        name: as sentences call it, such as "an intervention".
        mark: as the mark calls it.
        last: the file that makes a folder one of this kind; it is written last.
        unmarked: gives the files of a folder that lineas 0.1.0 wrote, before there were marks; none where it did not.
    """

    name: str
    mark: str
    last: str
    unmarked: Callable[[Path], Collection[str]] = lambda folder: ()


@dataclass(frozen=True)
class FileKind:
    """One kind of single file that lineas writes.

    Args:
        name: as sentences call it, such as "a report of lineas".
        sign: a pattern of what stands in the beginning of each.
    """

    name: str
    sign: bytes


HTML = FileKind("a report that lineas wrote", rb'<meta name="generator" content="lineas')
GGUF = FileKind("a control vector that lineas wrote", rb"lineas\.version")
PNG = FileKind("a picture that lineas wrote", rb"Software\0lineas")


def json_of(verb: str) -> FileKind:
    """The JSON that a verb of the command line writes."""
    return FileKind(f"JSON that lineas {verb} wrote", rb'"written_by": "lineas [^"\n]*, %s"' % re.escape(verb).encode())


def written_by(verb: str = "") -> str:
    """Return how lineas signs what it writes."""
    try:
        signed = f"lineas {version('lineas')}"
    except PackageNotFoundError:  # run from its sources
        signed = "lineas of its sources"
    return f"{signed}, {verb}" if verb else signed


def check_folder(path: Path, overwrite: bool, kind: FolderKind) -> None:
    """Refuse to write a folder over something that is not one of its kind, as lineas wrote it, or without consent.

    Args:
        overwrite: whether one of its kind may be replaced.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise LineasError(f"{path} exists already; choose another folder or pass --force (overwrite=True).")
    steadily(path, lambda place: own_files(place, kind, path))


def own_files(path: Path, kind: FolderKind, named: Path | None = None) -> frozenset[str]:
    """Return the files in a folder that lineas wrote, by their names in it.

    Args:
        named: the folder as the user calls it, where that is not the same.
    """
    named = path if named is None else named
    if not path.is_dir():
        raise LineasError(f"{named} exists and is not {kind.name}, so it is not overwritten; choose another folder.")
    marked = read_mark(path)
    if marked is None:
        found = frozenset(kind.unmarked(path))
        if not found and any(path.iterdir()):
            like = " that lineas wrote" if (path / kind.last).exists() else ""
            raise LineasError(
                f"{named} exists and is not {kind.name}{like}, so it is not overwritten; choose another folder."
            )
        return found
    if marked.get("kind") != kind.mark:
        raise LineasError(f"{named} exists and is not {kind.name}, so it is not overwritten; choose another folder.")
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
    """Refuse to write a file over one that lineas did not write, or without consent.

    What is no regular file, such as a device or a pipe, is written to and needs no consent.

    Args:
        overwrite: whether one of its kind may be replaced.
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
    """Return the mark of a folder, None where there is none or it is not lineas'."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("kind"), str) and isinstance(found.get("files"), dict)
    inside = whole and all(_is_inside(name) for name in found["files"])
    return found if inside else None


def write_mark(folder: Path, kind: FolderKind) -> frozenset[str]:
    """Write the mark of a folder in which lineas wrote everything; return the names of all its files."""
    facts = {name: file_facts(folder / name) for name in files_in(folder) if name != MARK}
    (folder / MARK).write_text(mark_text(kind.mark, facts), encoding="utf-8")
    return frozenset(facts) | {MARK}


def mark_text(kind: str, files: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """Return the text of a mark.

    Args:
        files: by name, the facts of the file, or a list of them while it is being replaced.
        settings: of the work, in a folder that a command works in for long.
    """
    mark = {"written_by": written_by(), "kind": kind, "files": dict(files)}
    mark |= {} if settings is None else {"settings": dict(settings)}
    return json.dumps(mark, indent=1, ensure_ascii=False) + "\n"


def files_in(folder: Path) -> list[str]:
    """Return the names of all files below a folder, links and devices among them, relative to it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def file_facts(file: Path) -> dict[str, Any]:
    """Return the size and the sha256 by which a file is known again."""
    found, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while piece := opened.read(2**20):
            found.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": found.hexdigest()}


def is_changed(file: Path, facts: Any) -> bool:
    """Return whether a file is there and is not the one of these facts, or of one of several."""
    if file.is_symlink() or not file.exists():
        return file.is_symlink()
    size = file.stat().st_size
    several = facts if isinstance(facts, list) else [facts]
    known = [one for one in several if isinstance(one, dict) and one.get("bytes") == size]
    return not known or not file.is_file() or file_facts(file) not in known


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)
