"""A folder that a command works in for long: taken by one run at a time, gone on with by the same command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files import check_place, locked, write_text
from lineas.ownership import MARK, FolderKind, read_mark, written_by

Settings = dict[str, Any]


def check_claim(out: Path, kind: FolderKind, old_settings: Callable[[Path], Settings | None]) -> None:
    """Refuse, before any work, a folder that holds something else than work of this kind.

    Args:
        out: the folder.
        kind: of the work.
        old_settings: gives the settings of a folder that lineas 0.1.0 made, which had no mark; None of any other.

    Raises:
        LineasError: saying what is there.
    """
    if str(out) not in ("", "."):
        check_place(out)
    if out.exists() and not out.is_dir():
        raise LineasError(f"{out} is a file; name a folder.")
    _settings_of(out, kind, old_settings)


@contextmanager
def claimed(
    out: Path,
    kind: FolderKind,
    settings: Settings,
    force: bool,
    old_settings: Callable[[Path], Settings | None] = lambda folder: None,
    forget: Callable[[Path, Settings], None] = lambda folder, before: None,
) -> Iterator[tuple[bool, int | None]]:
    """Take a folder, or go on in one of the same settings, alone until the block ends.

    Gives whether it is new, and the open file that holds it, of which workers get a copy.

    Args:
        out: the folder.
        kind: of the work.
        settings: everything that its results depend on.
        force: take it from work of other settings.
        old_settings: as in `check_claim`.
        forget: removes what work of other settings has written, and nothing else.

    Raises:
        LineasError: when something else is there, or another run works in it.
    """
    check_claim(out, kind, old_settings)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        before, now = _settings_of(out, kind, old_settings), json.loads(json.dumps(settings))
        if before == now:
            yield False, lock
            return
        if before is not None:
            if not force:
                raise LineasError(f"{out} holds {kind.name} of other settings; choose another folder or pass --force.")
            forget(out, before)
        mark = {"written_by": written_by(), "kind": kind.mark, "files": {}, "settings": now}
        write_text(out / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        yield True, lock


def give_up(out: Path) -> None:
    """Take back a claim of which nothing came; what else lies in the folder stays."""
    (out / MARK).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _settings_of(out: Path, kind: FolderKind, old_settings: Callable[[Path], Settings | None]) -> Settings | None:
    """The settings of the work in a folder; None where the folder is not there or empty.

    Raises:
        LineasError: when it holds something else.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return None
    marked = read_mark(out)
    found = old_settings(out) if marked is None else marked.get("settings") if marked["kind"] == kind.mark else None
    if not isinstance(found, dict):
        raise LineasError(f"{out} exists and is not {kind.name}; choose another folder.")
    return found
