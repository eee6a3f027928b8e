"""What is recorded of every result: the versions that made it, and when."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def packages() -> dict[str, str]:
    """The versions that results depend on; "unknown" of what runs without being installed."""
    return {name: _version(name) for name in ("lineas", "torch", "transformers")}


def lineas_version() -> str:
    """Return the version of lineas; "unknown" where it runs without being installed."""
    return _version("lineas")


def version_of(name: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def stamp() -> dict[str, Any]:
    """`versions`, Python's among them, and `created`, in UTC."""
    return {
        "versions": {**packages(), "python": platform.python_version()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
