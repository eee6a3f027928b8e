"""The folder of a sweep: what lineas has written there, and how it is removed again without anything else."""

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
"""Names of files that keep what was measured."""
METHOD = re.compile(r"[a-z][a-z-]*")
"""Names of methods, which jobs' folders begin with."""


def claimed(out: Path, settings: dict[str, Any], force: bool) -> AbstractContextManager[tuple[bool, int | None]]:
    """Take a folder for a sweep, or go on in one of the same settings; see `lineas.files.working_folder.claimed`."""
    return working_folder.claimed(out, KIND, settings, force, old_settings, _forget, (SWEEP, TABLE, PLOT))


def old_settings(out: Path) -> dict[str, Any] | None:
    """Return the settings of a sweep of lineas 0.1.0; None where there is none."""
    try:
        found = loads(read_bytes(out / SWEEP))["settings"]
        return found if isinstance(found["methods"], list) and isinstance(found["gamma"], list) else None
    except (LineasError, LookupError, TypeError):
        return None


def give_up(out: Path, jobs: list[Job]) -> None:
    """Take back a claim of which nothing came; what else lies in the folder stays."""
    _remove(out, [job.place for job in jobs])
    working_folder.give_up(out)


def keep(learned: Path, place: Path) -> None:
    """Keep a copy of an intervention; where it is there already, with a calibration perhaps, it stays."""
    chosen = Intervention.load(learned)
    if not place.exists() or Intervention.load(place).digest() != chosen.digest():
        chosen.save(place, overwrite=True)


def _forget(out: Path, before: dict[str, Any]) -> None:
    """Remove what a sweep of other settings has written."""
    methods = [name for name in before.get("methods", ()) if isinstance(name, str) and METHOD.fullmatch(name)]
    _remove(out, [out / UNTOUCHED, *(place for name in methods for place in out.glob(f"{name}-[0-9]*"))])


def _remove(out: Path, jobs: Iterable[Path]) -> None:
    """Remove the results of a sweep, and its jobs' folders as far as lineas wrote what is in them."""
    jobs = [job for job in jobs if job.is_dir() and not job.is_symlink()]
    learned = [place for job in jobs for place in job.iterdir() if place.is_dir() and not place.is_symlink()]
    learned += [out / CHOSEN] if (out / CHOSEN).is_dir() else []
    learned = [place for place in learned if any(place.iterdir()) and _is_intervention(place)]
    for place in learned:
        remove_own(place, artifact.KIND)
    parts = [file for file in (out / PARTS).glob("*.json") if PART.fullmatch(file.name)]
    for file in (*(out / name for name in (SWEEP, TABLE, PLOT)), *parts, *(job / POINTS for job in jobs)):
        file.unlink(missing_ok=True)
    for folder in (out / PARTS, *jobs):
        with suppress(OSError):  # not there, or something of others in it
            folder.rmdir()


def _is_intervention(place: Path) -> bool:
    """Return whether lineas wrote a folder; one that was changed since then is refused, and nothing removed."""
    if not (place / artifact.DESCRIPTION).exists():
        return False
    own_files(place, artifact.KIND)
    return True
