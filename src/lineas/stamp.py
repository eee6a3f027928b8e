"""What is recorded of every result: the versions that made it, and when."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any


def packages() -> dict[str, str]:
    """The versions that results depend on."""
    return {name: version(name) for name in ("lineas", "torch", "transformers")}


def stamp() -> dict[str, Any]:
    """`versions`, Python's among them, and `created`, in UTC."""
    return {
        "versions": {**packages(), "python": platform.python_version()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
