"""LoRA adapters of peft, attached to a network within a block and removed after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from lineas.checks import as_number
from lineas.errors import LineasError, first_line, needing
from lineas.models.frozen import frozen
from lineas.models.loader_report import holds_pickles, no_pickles

PEFT = "adapters need peft", "evaluate"
"""The arguments of `needing` for peft."""
PLAIN_STARTS = (True, False, "gaussian")
"""Values of `init_lora_weights` with which peft does not change the weights under an adapter."""
PLAIN_FIELDS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "lora_bias", "fan_in_fan_out",
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern",
    "ensure_weight_tying", "init_lora_weights", "runtime_config",
)  # fmt: skip
"""Settings of a plain LoRA adapter, which changes each weight by a product of two matrices and nothing else."""


@contextmanager
def temporary_adapters(network: nn.Module) -> Iterator[None]:
    """Remove, at the end of the block, all adapters that were put on the network within it."""
    if _layers(network):
        raise LineasError(
            "this network carries an adapter of peft already; merge it (merge_and_unload()) or take it off (unload()) "
            "before another is put on."
        )
    with frozen(network):
        try:
            yield
        finally:
            _remove_adapters(network)


class Adapter:
    """An adapter that is attached to a network, and acts if it is on."""

    def __init__(self, network: nn.Module, on: bool) -> None:
        self._layers, self._on = list(_layers(network).values()), on
        if not on:
            self._switch(False)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch the adapter off within the block, so that the network computes exactly as without it."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(self._on)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)


@contextmanager
def attached(network: nn.Module, folder: Path, strength: float) -> Iterator[Adapter]:
    """Attach a LoRA adapter that peft saved to a network within the block.

    The strength multiplies the change of every weight; 0 is exactly the network without the adapter.
    """
    strength = as_number(strength)
    with needing(*PEFT):
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    if not (folder / "adapter_config.json").exists():
        raise LineasError(f"{folder} holds no adapter of peft (adapter_config.json).")
    if holds_pickles(folder):
        raise LineasError(no_pickles(folder))
    with temporary_adapters(network):
        try:
            config: Any = PeftConfig.from_pretrained(str(folder))
            _check_plain(folder, config)
            adapted: Any = PeftModel.from_pretrained(network, str(folder))
            stored, expected = load_peft_weights(str(folder), device="cpu"), get_peft_model_state_dict(adapted)
        except LineasError:
            raise
        except Exception as error:  # errors of peft and torch have many lines
            raise LineasError(f"the adapter {folder} does not fit this network: {first_line(error)}.") from None
        if stored.keys() != expected.keys():
            raise LineasError(f"the adapter {folder} is for other modules than this network has.")
        _scale(folder, network, strength)
        adapted.eval()
        yield Adapter(network, on=strength != 0)


def _scale(folder: Path, network: nn.Module, strength: float) -> None:
    """Multiply every layer's change by the strength; peft's own method skips some kinds of layers."""
    for name, layer in _layers(network).items():
        scaling = getattr(layer, "scaling", None)
        if not isinstance(scaling, dict) or not scaling or getattr(layer, "lora_variant", None):
            raise LineasError(f"the adapter {folder} changes {name} in a way that has no strength.")
        for adapter in scaling:
            scaling[adapter] *= strength


def _check_plain(folder: Path, config: Any) -> None:
    """Refuse an adapter that changes more than low-rank parts of linears, or cannot be scaled or removed."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    default: Any = type(config)()
    names = [field.name for field in fields(config) if field.name not in PLAIN_FIELDS]
    extras = [name for name in names if getattr(config, name) not in (None, getattr(default, name))]
    if kind == "LORA" and config.init_lora_weights not in PLAIN_STARTS:
        extras.append("init_lora_weights")
    if kind != "LORA" or extras:
        reason = kind if kind != "LORA" else ", ".join(f"{name}={getattr(config, name)!r}"[:80] for name in extras)
        raise LineasError(
            f"{folder} is not a plain LoRA ({reason}); adapters that change biases, whole modules, the original "
            "weights or the order of layers cannot be evaluated at a strength and removed again."
        )


def _layers(network: nn.Module) -> dict[str, Any]:
    """Return the modules in which peft has wrapped others, by name."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return {}
    return {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


def _remove_adapters(network: nn.Module) -> None:
    """Put the original modules back in place of those that wrap them."""
    layers = _layers(network)
    for name, module in layers.items():
        if not any(name.startswith(f"{other}.") for other in layers):  # around experts, wrappers are nested
            network.set_submodule(name, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded", "active_adapter"):
        vars(network).pop(attribute, None)
