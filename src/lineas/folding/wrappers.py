"""Wrappers and adapters of a network, with which its own weights are not all that it computes."""

from __future__ import annotations

from typing import Any

from torch import nn


def inner(network: nn.Module) -> tuple[str, nn.Module] | None:
    """The network that another one merely wraps (DataParallel, a compiled module, a trainer's), and its attribute.

    That is the only part of a module that cannot save itself, where this part can.
    """
    parts = list(network.named_children())
    if hasattr(network, "denoiser") or hasattr(type(network), "save_pretrained") or len(parts) != 1:
        return None
    name, part = parts[0]
    if hasattr(type(part), "save_pretrained"):
        return name, part
    deeper = inner(part)
    return None if deeper is None else (f"{name}.{deeper[0]}", deeper[1])


def adapters(network: nn.Module) -> list[str]:
    """The names of the adapters of peft in a network, merged into its weights for the moment or not."""
    named: dict[str, None] = {}
    for module in network.modules():
        classes = {kind.__name__ for kind in type(module).__mro__}
        if classes & {"BaseTunerLayer", "PeftModel"}:
            named |= dict.fromkeys(adapters_of(module) or ["default"])
        elif getattr(module, "_hf_peft_config_loaded", False):
            named |= dict.fromkeys(getattr(module, "peft_config", None) or ["default"])
    return list(named)


def adapters_of(module: nn.Module) -> list[str]:
    """The names of the adapters that one module of peft holds; none of any other module."""
    if not {kind.__name__ for kind in type(module).__mro__} & {"BaseTunerLayer", "PeftModel"}:
        return []
    held: Any = vars(module).get("peft_config") or getattr(module, "active_adapters", None) or ["default"]
    return [held] if isinstance(held, str) else [str(name) for name in held]


def why_not_whole(network: nn.Module) -> str:
    """Return the reason why a network's weights are not all that it computes, or not all here; "" where they are."""
    carried = adapters(network)
    if carried:
        names = ", ".join(map(repr, carried))
        return (
            f"this model carries the adapter{'s' if len(carried) > 1 else ''} {names}; merge it first, with "
            "merge_and_unload() of peft (a pipeline: fuse_lora(), then unload_lora_weights()), and take what that gives"
        )
    wrapped = inner(network)
    if wrapped is not None:
        name, part = wrapped
        return (
            f"a {type(network).__name__} wraps this {type(part).__name__}; give the network itself, which is its "
            f"attribute {name}"
        )
    shards = getattr(network, "_tp_size", None)
    if isinstance(shards, int) and shards > 1:
        return f"the weights of this model are spread over {shards} processes; load it whole"
    return ""
