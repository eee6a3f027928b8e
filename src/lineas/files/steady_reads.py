"""Reads of folders that may be replaced meanwhile: they see the old or the new folder, never parts of both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lineas.errors import LineasError

READS = 50
"""Number of attempts to read a folder that is replaced meanwhile."""
Read = TypeVar("Read")


def steadily(folder: Path, read: Callable[[Path], Read]) -> Read:
    """Return what a function reads from a folder that may be replaced meanwhile; it raises LineasError for parts."""
    for _ in range(READS):
        with pinned(folder) as place:
            try:
                return read(place)
            except (LineasError, OSError):
                if os.path.samestat(place.stat(), folder.stat()):
                    raise  # the folder was not replaced meanwhile
    return read(folder)


@contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """Yield a path that leads to the same folder until the end of the block, also when another one replaces it."""
    if not sys.platform.startswith("linux"):
        yield folder
        return
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
