"""Parts of an evaluation that are done, kept in a folder, so that an interrupted one goes on there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lineas.files import write_text


class Kept:
    """Results of parts that are done, a file each, under the digest of everything they depend on."""

    def __init__(self, folder: str | Path | None, of: dict[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._of = of

    def get(self, what: dict[str, Any], make: Callable[[], Any]) -> tuple[Any, bool]:
        """What is kept, or else made and kept; and whether it was there."""
        if self._folder is None:
            return make(), False
        key = hashlib.sha256(json.dumps({**self._of, **what}, sort_keys=True).encode()).hexdigest()[:24]
        file = self._folder / f"{what['part']}-{key}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8")), True
        except (OSError, ValueError):  # not there, or cut off by whatever ended the run
            made = make()
        write_text(file, json.dumps(made, ensure_ascii=False))
        return made, False
