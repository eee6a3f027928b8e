"""The folder of a sweep: taken by one, gone on with by the same, given up where nothing came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.files import alone, write_text
from lineas.intervention import Intervention
from lineas.strict_json import loads, read_bytes
from lineas.sweeping.jobs import PARTS, UNTOUCHED, Job

SWEEP, TABLE, PLOT, CHOSEN = "sweep.json", "sweep.md", "sweep.png", "chosen"


@contextmanager
def claimed(out: Path, settings: dict[str, Any], force: bool) -> Iterator[tuple[bool, int | None]]:
    """Take a folder for a sweep, or go on in one of the same settings, alone until the block ends.

    Gives whether it is new, and the open file that holds it, of which workers get a copy.

    Args:
        out: the folder.
        settings: everything that its points depend on.
        force: take it from a sweep of other settings.

    Raises:
        LineasError: when something else is there, or another run works in it.
    """
    if not out.exists():
        out.mkdir(parents=True)
    with alone(out) if out.is_dir() else nullcontext() as lock:
        yield _claim(out, settings, force), lock


def _claim(out: Path, settings: dict[str, Any], force: bool) -> bool:
    file = out / SWEEP
    if not out.is_dir() or any(out.iterdir()):
        try:
            before = loads(read_bytes(file))["settings"]
            methods = [*before["methods"]]
        except (OSError, ValueError, LookupError, TypeError):
            raise LineasError(f"{out} exists and is not a sweep; choose another folder.") from None
        if before == json.loads(json.dumps(settings)):
            return False
        if not force:
            raise LineasError(f"{out} holds a sweep of other settings; choose another folder or pass --force.")
        for name in (TABLE, PLOT):
            (out / name).unlink(missing_ok=True)
        of_jobs = [place for name in methods for place in out.glob(f"{name}-[0-9]*")]
        for place in (out / CHOSEN, out / PARTS, out / UNTOUCHED, *of_jobs):
            shutil.rmtree(place, ignore_errors=True)
    write_text(file, json.dumps({"settings": settings}, indent=1) + "\n")
    return True


def give_up(out: Path, jobs: list[Job]) -> None:
    """Take back a claim of which nothing came; what else lies in the folder stays."""
    for place in (out / PARTS, *(job.place for job in jobs)):
        shutil.rmtree(place, ignore_errors=True)
    (out / SWEEP).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def keep(learned: Path, place: Path) -> None:
    """A copy of an intervention; where it is there already, with a calibration perhaps, it stays."""
    chosen = Intervention.load(learned)
    if not place.exists() or Intervention.load(place).digest() != chosen.digest():
        chosen.save(place, overwrite=True)
