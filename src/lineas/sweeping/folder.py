"""The folder of a sweep: how a run claims it, and how the files of lineas in it are removed, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files import working_folder
from lineas.files.ownership import FolderKind, own_files
from lineas.files.strict_json import loads, read_bytes
from lineas.files.writing import remove_own
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.sweeping.jobs import PARTS, POINTS, UNTOUCHED, Job

SWEEP, TABLE, PLOT, CHOSEN = "sweep.json", "sweep.md", "sweep.png", "chosen"
KIND = FolderKind("a sweep", "sweep", SWEEP)
PART = re.compile(r"[a-z]+-[0-9a-f]{24}\.json")
"""The names of files with cached results."""
METHOD = re.compile(r"[a-z][a-z-]*")
"""The names of methods, with which the folders of jobs begin."""


def claimed(out: Path, settings: dict[str, Any], force: bool) -> AbstractContextManager[tuple[bool, int | None]]:
    """Claim a folder for a new sweep, or for one of the same settings; see `lineas.files.working_folder.claimed`."""
    return working_folder.claimed(out, KIND, settings, force, old_settings, _forget, (SWEEP, TABLE, PLOT))


def old_settings(out: Path) -> dict[str, Any] | None:
    """Return the settings of a sweep by lineas 0.1.0; None for another folder."""
    try:
        settings = loads(read_bytes(out / SWEEP))["settings"]
        return settings if isinstance(settings["methods"], list) and isinstance(settings["gamma"], list) else None
    except (LineasError, LookupError, TypeError):
        return None


def give_up(out: Path, jobs: list[Job]) -> None:
    """Give up the claim of a sweep without results; other files in the folder stay."""
    _remove(out, [job.place for job in jobs])
    working_folder.give_up(out)


def copy(learned: Path, place: Path) -> None:
    """Save a copy of an intervention, unless it is there already, perhaps with a calibration."""
    chosen = Intervention.load(learned)
    if not place.exists() or Intervention.load(place).digest() != chosen.digest():
        chosen.save(place, overwrite=True)


def _forget(out: Path, before: dict[str, Any]) -> None:
    """Remove the files of a sweep of other settings."""
    methods = [name for name in before.get("methods", ()) if isinstance(name, str) and METHOD.fullmatch(name)]
    _remove(out, [out / UNTOUCHED, *(place for name in methods for place in out.glob(f"{name}-[0-9]*"))])


def _remove(out: Path, jobs: Iterable[Path]) -> None:
    """Remove the results of a sweep and the folders of its jobs, but no file that lineas did not write."""
    jobs = [job for job in jobs if job.is_dir() and not job.is_symlink()]
    places = [place for job in jobs for place in job.iterdir() if place.is_dir() and not place.is_symlink()]
    places += [out / CHOSEN] if (out / CHOSEN).is_dir() else []
    places = [place for place in places if (place / artifact.DESCRIPTION).exists()]
    for place in places:
        own_files(place, artifact.KIND)  # raises if a file was changed, before any is removed
    for place in places:
        remove_own(place, artifact.KIND)
    parts = [file for file in (out / PARTS).glob("*.json") if PART.fullmatch(file.name)]
    for file in (*(out / name for name in (SWEEP, TABLE, PLOT)), *parts, *(job / POINTS for job in jobs)):
        file.unlink(missing_ok=True)
    for folder in (out / PARTS, *jobs):
        with suppress(OSError):  # it is missing, or holds other files
            folder.rmdir()
