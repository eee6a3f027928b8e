"""What of vLLM lineas does not steer: refused when a server starts, never served unsteered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lineas.errors import LineasError
from lineas.vllm_plugin.settings import OTHER_MODEL

CANNOT: dict[str, Callable[[Any], object]] = {
    "pipeline parallelism": lambda c: c.parallel_config.pipeline_parallel_size > 1,
    "dual-batch overlap": lambda c: getattr(c.parallel_config, "use_ubatching", False),
    "sequence parallelism": lambda c: getattr(c.compilation_config.pass_config, "enable_sp", False),
    "sequence-parallel experts": lambda c: getattr(c.parallel_config, "use_sequence_parallel_moe", False),
    "fast prefill with shared KV caches": lambda c: getattr(c.cache_config, "kv_sharing_fast_prefill", False),
    "the second model runner (VLLM_USE_V2_MODEL_RUNNER=1, watermarks)": lambda c: c.use_v2_model_runner,
}
"""By name, whether a server's configuration turns on what moves tokens to where their strengths are not."""


def check_config(config: Any, force: bool) -> None:
    """Refuse a configuration under which tokens and strengths would part.

    Args:
        config: vLLM's whole configuration.
        force: accept a connector of which nobody said that it keeps steered prefixes apart.

    Raises:
        LineasError: naming what to turn off.
    """
    found = [name for name, is_on in CANNOT.items() if is_on(config)]
    if found:
        raise LineasError(f"lineas does not steer with {' or '.join(found)}; turn it off.")
    connector = getattr(config.kv_transfer_config, "kv_connector", None)
    if connector and not force:
        raise LineasError(
            f"the connector {connector} keeps or sends prefixes, and lineas does not know whether it tells steered "
            f"ones apart by their cache salt; {OTHER_MODEL}=1 serves it all the same."
        )


def check_environment(given: Any) -> None:
    """Refuse variables that would lead requests past the plugin.

    Raises:
        LineasError: naming the variable.
    """
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"):
        if given.get(name, "0").lower() not in ("", "0", "false"):
            raise LineasError(f"lineas does not steer with {name}={given[name]}; leave it out.")


def check_module(name: str, module: Any, width: int, hidden: int) -> None:
    """Refuse a module whose output is not one row `[hidden]` a token, whole on every rank.

    Args:
        name: the site's.
        module: the engine's.
        width: of the map.
        hidden: the network's width.

    Raises:
        LineasError: saying what stands against it.
    """
    if width != hidden:
        raise LineasError(
            f"the site {name!r} has {width} neurons, the network's rows have {hidden}; lineas serves maps on whole "
            "rows, steer it live."
        )
    partial = getattr(module, "reduce_results", True) is False and getattr(module, "tp_size", 1) > 1
    apart = getattr(module, "skip_bias_add", False) and getattr(module, "bias", None) is not None
    if partial or apart or "forward" in vars(module):
        raise LineasError(f"vLLM splits or moves what {name!r} puts out here, so it is not steered; fold it instead.")
