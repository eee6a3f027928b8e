"""A folder that a command works in for long: taken by one run at a time, gone on with by the same command."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files.ownership import MARK, FolderKind, file_facts, is_changed, mark_text, read_mark
from lineas.files.writing import check_place, locked, scratch_folder, write_text

Settings = dict[str, Any]


def check_claim(out: Path, kind: FolderKind, old_settings: Callable[[Path], Settings | None]) -> None:
    """Refuse, before any work, a folder that holds something else than work of this kind.

    Args:
        old_settings: gives the settings of a folder that lineas 0.1.0 made, which had no mark; None of any other.
    """
    if str(out) not in ("", "."):
        check_place(out)
    if out.exists() and not out.is_dir():
        raise LineasError(f"{out} is a file; name a folder.")
    _settings_of(out, read_mark(out), kind, old_settings)


@contextmanager
def claimed(
    out: Path,
    kind: FolderKind,
    settings: Settings,
    force: bool,
    old_settings: Callable[[Path], Settings | None] = lambda folder: None,
    forget: Callable[[Path, Settings], None] = lambda folder, before: None,
    results: Collection[str] = (),
) -> Iterator[tuple[bool, int | None]]:
    """Take a folder, or go on in one of the same settings, alone until the block ends.

    Gives whether it is new, and the open file that holds it, of which workers get a copy.

    Args:
        old_settings: as in `check_claim`.
        forget: removes what work of other settings has written, and nothing else.
        results: names of the files that will be written by `result`.
    """
    check_claim(out, kind, old_settings)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        marked, now = read_mark(out), json.loads(json.dumps(settings))
        before = _settings_of(out, marked, kind, old_settings)
        known = {} if marked is None else marked["files"]
        if marked is None and before is not None:  # of lineas 0.1.0, which kept no list of what it wrote
            known = {name: file_facts(out / name) for name in results if (out / name).is_file()}
        for name in results:
            _check_result(out, name, known)
        if before == now:
            yield False, lock
            return
        if before is not None:
            if not force:
                raise LineasError(f"{out} holds {kind.name} of other settings; choose another folder or pass --force.")
            forget(out, before)
        write_text(out / MARK, mark_text(kind.mark, known, now))
        yield True, lock


@contextmanager
def result(out: Path, name: str) -> Iterator[Path]:
    """A result to write into a claimed folder, which takes its place at the end of the block."""
    marked = read_mark(out)
    if marked is None:
        raise LineasError(f"{out} lost its {MARK} while it was worked in; start again in another folder.")
    known = marked["files"]
    _check_result(out, name, known)
    with scratch_folder(out) as scratch:
        beside = scratch / name
        yield beside
        before = known.get(name, [])
        facts = [*(before if isinstance(before, list) else [before])[-1:], file_facts(beside)]
        text = mark_text(marked["kind"], {**known, name: facts}, marked.get("settings"))
        write_text(out / MARK, text)  # before the file takes its place: either is known
        beside.replace(out / name)


def _check_result(out: Path, name: str, known: Mapping[str, Any]) -> None:
    """Refuse to write over a file of a claimed folder that lineas did not write, or that was changed."""
    place = out / name
    if (place.exists() or place.is_symlink()) and (name not in known or is_changed(place, known[name])):
        raise LineasError(
            f"{place} was not written by lineas, or was changed since, so it is not overwritten; move it away."
        )


def give_up(out: Path) -> None:
    """Take back a claim of which nothing came; what else lies in the folder stays."""
    (out / MARK).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _settings_of(
    out: Path, marked: Settings | None, kind: FolderKind, old_settings: Callable[[Path], Settings | None]
) -> Settings | None:
    """The settings of the work in a folder; None where the folder is not there or empty."""
    if not out.is_dir() or not any(out.iterdir()):
        return None
    found = old_settings(out) if marked is None else marked.get("settings") if marked["kind"] == kind.mark else None
    if not isinstance(found, dict):
        raise LineasError(f"{out} exists and is not {kind.name}; choose another folder.")
    return found
