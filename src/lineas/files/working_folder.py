"""The folder of a long command: one run at a time works in it, and the same command continues there."""

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
    """Refuse, before any work, a folder that holds anything but work of this kind.

    Args:
        old_settings: function that returns the settings of a folder by lineas 0.1.0, which has no mark; else None.
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
    """Hold a new folder, or one of the same settings, alone until the block ends.

    Yields:
        whether the folder is new, and the open file that holds it, of which workers get a copy.

    Args:
        old_settings: function as in `check_claim`.
        forget: function that removes the files of work of other settings.
        results: names of the files that `result` will write.
    """
    check_claim(out, kind, old_settings)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        marked, now = read_mark(out), json.loads(json.dumps(settings))
        before = _settings_of(out, marked, kind, old_settings)
        own = {} if marked is None else marked["files"]
        if marked is None and before is not None:  # by lineas 0.1.0, which wrote no list of its files
            own = {name: file_facts(out / name) for name in results if (out / name).is_file()}
        for name in results:
            _check_result(out, name, own)
        if before == now:
            yield False, lock
            return
        if before is not None:
            if not force:
                raise LineasError(f"{out} holds {kind.name} of other settings; choose another folder or pass --force.")
            forget(out, before)
        write_text(out / MARK, mark_text(kind.mark, own, now))
        yield True, lock


@contextmanager
def result(out: Path, name: str) -> Iterator[Path]:
    """Yield the path of a file to write, which becomes a result in a claimed folder at the end of the block."""
    marked = read_mark(out)
    if marked is None:
        raise LineasError(f"{out} lost its {MARK} while it was worked in; start again in another folder.")
    own = marked["files"]
    _check_result(out, name, own)
    with scratch_folder(out) as scratch:
        temporary = scratch / name
        yield temporary
        before = own.get(name, [])
        facts = [*(before if isinstance(before, list) else [before])[-1:], file_facts(temporary)]
        text = mark_text(marked["kind"], {**own, name: facts}, marked.get("settings"))
        write_text(out / MARK, text)  # first, so that the mark has the facts of the old and of the new file
        temporary.replace(out / name)


def _check_result(out: Path, name: str, own: Mapping[str, Any]) -> None:
    place = out / name
    if (place.exists() or place.is_symlink()) and (name not in own or is_changed(place, own[name])):
        raise LineasError(
            f"{place} was not written by lineas, or was changed since, so it is not overwritten; move it away."
        )


def give_up(out: Path) -> None:
    """Remove the mark of a folder without results, and the folder if it is empty."""
    (out / MARK).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _settings_of(
    out: Path, marked: Settings | None, kind: FolderKind, old_settings: Callable[[Path], Settings | None]
) -> Settings | None:
    """Return the settings of the work in a folder; None if the folder is missing or empty."""
    if not out.is_dir() or not any(out.iterdir()):
        return None
    settings = old_settings(out) if marked is None else marked.get("settings") if marked["kind"] == kind.mark else None
    if not isinstance(settings, dict):
        raise LineasError(f"{out} exists and is not {kind.name}; choose another folder.")
    return settings
