"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders it lies in where they are missing.

    Raises:
        OSError: when it cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix=f".{path.name}.", dir=path.resolve().parent, delete=False
    ) as file:
        beside = Path(file.name)
        try:
            file.write(text)
            file.close()
            beside.chmod(0o644)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path, keep: bool = False) -> Iterator[Path]:
    """A folder to write into, which takes its place at the end of the block, or is gone when the block fails.

    Args:
        path: its place; what is there is replaced.
        keep: unless this is True: then what has come there meanwhile stays.
    """
    parent = path.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    try:
        yield beside
        beside.chmod(0o755)
        if path.exists() and keep:
            shutil.rmtree(beside)
        elif path.exists():
            old = beside.with_name(beside.name + ".old")
            path.replace(old)
            beside.replace(path)
            shutil.rmtree(old)
        else:
            beside.replace(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
