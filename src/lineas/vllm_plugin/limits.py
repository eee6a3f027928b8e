"""Features of vLLM that lineas cannot steer; a server that uses one is refused at its start."""

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
"""For each feature that reorders or splits tokens, so that strengths would not match them: whether a config uses it."""


def check_config(config: Any, force: bool) -> None:
    """Refuse a configuration with features that cannot be steered, or without `force` with a KV connector."""
    features = [name for name, is_on in CANNOT.items() if is_on(config)]
    if features:
        raise LineasError(f"lineas does not steer with {' or '.join(features)}; turn it off.")
    connector = getattr(config.kv_transfer_config, "kv_connector", None)
    if connector and not force:
        raise LineasError(
            f"the connector {connector} stores or sends prefixes, and may mix up steered and other ones if it ignores "
            f"their cache salt; set {OTHER_MODEL}=1 to serve with it all the same."
        )


def check_environment(environment: Any) -> None:
    """Refuse environment variables with which requests would bypass the plugin."""
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"):
        if environment.get(name, "0").lower() not in ("", "0", "false"):
            raise LineasError(f"lineas does not steer with {name}={environment[name]}; leave it out.")


def check_module(name: str, module: Any, width: int, hidden: int) -> None:
    """Refuse a site's module whose output is not one complete row `[hidden]` per token on every rank."""
    if width != hidden:
        raise LineasError(
            f"the site {name!r} has {width} neurons, the network's rows have {hidden}; lineas serves maps on whole "
            "rows, steer it live."
        )
    is_partial = getattr(module, "reduce_results", True) is False and getattr(module, "tp_size", 1) > 1
    bias_is_separate = getattr(module, "skip_bias_add", False) and getattr(module, "bias", None) is not None
    if is_partial or bias_is_separate or "forward" in vars(module):
        raise LineasError(f"vLLM splits or moves the output of {name!r}, so it cannot be steered; fold it instead.")
