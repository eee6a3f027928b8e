"""Steering on vLLM, request by request: `vllm serve MODEL` with `LINEAS_INTERVENTIONS=calm=DIR,brief=DIR`.

A request is steered by `"vllm_xargs": {"lineas": "calm:0.7,brief:0.3"}` or by the model name `MODEL:calm@0.7`; in
Python, by `SamplingParams(extra_args={"lineas": "calm:0.7"})`. Without these variables the plugin does nothing.
"""

from __future__ import annotations

import os

from lineas.vllm_plugin.frontend import Registry
from lineas.vllm_plugin.limits import check_environment
from lineas.vllm_plugin.settings import Settings

_registry: Registry | None = None


def register() -> None:
    """Install the plugin; vLLM calls this in each of its processes (entry point `vllm.general_plugins`)."""
    global _registry
    settings = Settings.read()
    if settings is None or _registry is not None:
        return
    check_environment(os.environ)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # lineas steers the first model runner only
    from lineas.vllm_plugin import frontend, worker

    worker.install(settings)
    _registry = frontend.install(settings)


def registry() -> Registry:
    """Return the interventions that are loaded in this process's server."""
    if _registry is None:
        raise RuntimeError("vLLM runs without LINEAS_INTERVENTIONS.")
    return _registry
