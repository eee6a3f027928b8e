"""Steering on vLLM, request by request: `vllm serve MODEL` with `LINEAS_INTERVENTIONS=calm=DIR,brief=DIR`.

A request says `"vllm_xargs": {"lineas": "calm:0.7,brief:0.3"}` or names the model `MODEL:calm@0.7`; in Python,
`SamplingParams(extra_args={"lineas": "calm:0.7"})`. Without interventions in the environment vLLM stays as it is.
"""

from __future__ import annotations

import os

from lineas.vllm_plugin.frontend import Registry
from lineas.vllm_plugin.limits import check_environment
from lineas.vllm_plugin.settings import Settings

_registry: Registry | None = None


def register() -> None:
    """Called by vLLM in each of its processes (entry point `vllm.general_plugins`).

    Raises:
        LineasError: when the environment names an intervention that cannot be read, or vLLM is not as expected.
    """
    global _registry
    settings = Settings.read()
    if settings is None or _registry is not None:
        return
    check_environment(os.environ)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the runner that is steered
    from lineas.vllm_plugin import frontend, worker

    worker.install(settings)
    _registry = frontend.install(settings)


def registry() -> Registry:
    """What is loaded in this process's server.

    Raises:
        RuntimeError: when vLLM did not call `register`, or there was nothing to load.
    """
    if _registry is None:
        raise RuntimeError("vLLM runs without LINEAS_INTERVENTIONS.")
    return _registry
