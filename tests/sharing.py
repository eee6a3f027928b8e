"""What is dear and made once, whatever number of processes the tests run in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process that asks fills, while others wait; leave it as it is.

    Args:
        factory: of the temporary folders of the session.
        name: of the folder, one of its own.
        make: fills the folder that it is given, which does not exist yet.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = folder.with_suffix(".begun")
            shutil.rmtree(begun, ignore_errors=True)  # of one that failed
            make(begun)
            begun.rename(folder)
    return folder
