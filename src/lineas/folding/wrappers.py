"""Wrappers and adapters: what makes a network compute more than its own weights say."""

from __future__ import annotations

from typing import Any

from torch import nn


def wrapped_network(network: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the attribute and the network inside a wrapper (DataParallel, a compiled module, a trainer's).

    A wrapper has no `save_pretrained`, and its only child has one, or is a wrapper itself.
    """
    parts = list(network.named_children())
    if hasattr(network, "denoiser") or hasattr(type(network), "save_pretrained") or len(parts) != 1:
        return None
    name, part = parts[0]
    if hasattr(type(part), "save_pretrained"):
        return name, part
    deeper = wrapped_network(part)
    return None if deeper is None else (f"{name}.{deeper[0]}", deeper[1])


def adapters(network: nn.Module) -> list[str]:
    """Return the names of peft's adapters in a network, also of those that are merged temporarily."""
    named: dict[str, None] = {}
    for module in network.modules():
        names = adapters_of(module)
        if not names and getattr(module, "_hf_peft_config_loaded", False):
            names = getattr(module, "peft_config", None) or ["default"]
        named |= dict.fromkeys(names)
    return list(named)


def adapters_of(module: nn.Module) -> list[str]:
    """Return the names of the adapters in a module of peft; an empty list for other modules."""
    if not {kind.__name__ for kind in type(module).__mro__} & {"BaseTunerLayer", "PeftModel"}:
        return []
    names: Any = vars(module).get("peft_config") or getattr(module, "active_adapters", None) or ["default"]
    return [names] if isinstance(names, str) else [str(name) for name in names]


def reason_not_plain(network: nn.Module) -> str:
    """Return the reason why a network computes more than its weights say, or lacks some; "" if there is none."""
    if names := adapters(network):
        return (
            f"this model carries the adapter{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}; merge it "
            "first, with merge_and_unload() of peft (for a pipeline fuse_lora(), then unload_lora_weights()), and use "
            "the result"
        )
    if wrapped := wrapped_network(network):
        name, part = wrapped
        return (
            f"a {type(network).__name__} wraps this {type(part).__name__}; give the network itself, which is its "
            f"attribute {name}"
        )
    shards = getattr(network, "_tp_size", None)
    if isinstance(shards, int) and shards > 1:
        return f"the weights of this model are spread over {shards} processes; load it whole"
    return ""
