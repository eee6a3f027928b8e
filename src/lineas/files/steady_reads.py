"""Folders that may be replaced while they are read: the old or the new is seen, never something of both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lineas.errors import LineasError

READS = 50
"""Attempts to read a folder that is being replaced meanwhile."""
Read = TypeVar("Read")


def steadily(folder: Path, read: Callable[[Path], Read]) -> Read:
    """Return what a function reads of a folder, which may be replaced meanwhile: the old or the new, never of both.

    Args:
        read: from a path to the folder to what it holds; raises LineasError where it is not whole.
    """
    for _ in range(READS):
        with pinned(folder) as place:
            try:
                return read(place)
            except (LineasError, OSError):
                if os.path.samestat(place.stat(), folder.stat()):
                    raise  # it was not replaced meanwhile, so this is what it holds
    return read(folder)


@contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """A path to a folder that leads to the same one until the end of the block, also when it is replaced."""
    if not sys.platform.startswith("linux"):
        yield folder
        return
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
