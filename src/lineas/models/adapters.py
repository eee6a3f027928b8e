"""LoRA adapters of peft on a network, for as long as a block lasts; afterwards the network is as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lineas.errors import LineasError, first_line
from lineas.models.frozen import frozen
from lineas.models.weights import holds_pickles, no_pickles

NOT_INSTALLED = "adapters need peft: pip install 'lineas[evaluate]'."
PLAIN_STARTS = (True, False, "gaussian")
"""Ways in which peft may start an adapter that leave the weights under it alone."""


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Whatever adapters are put on the network within the block are gone afterwards, also after a failure."""
    with frozen(network):
        try:
            yield
        finally:
            _strip(network)


@contextmanager
def attached(network: nn.Module, folder: Path, strength: float) -> Iterator[None]:
    """Within the block the network carries a LoRA adapter.

    Args:
        network: of transformers.
        folder: where peft saved the adapter.
        strength: by which its change of every weight is multiplied; 0 is the network as it is.

    Raises:
        LineasError: when the folder holds no plain LoRA, or one for another network.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
        from peft.utils import load_peft_weights
    except ImportError:
        raise LineasError(NOT_INSTALLED) from None
    if not (folder / "adapter_config.json").exists():
        raise LineasError(f"{folder} holds no adapter of peft (adapter_config.json).")
    if holds_pickles(folder):
        raise LineasError(no_pickles(folder))
    with restored(network):
        try:
            config: Any = PeftConfig.from_pretrained(str(folder))
            _check_plain(folder, config)
            adapted: Any = PeftModel.from_pretrained(network, str(folder))  # type: ignore[arg-type]
            stored, here = load_peft_weights(str(folder), device="cpu"), get_peft_model_state_dict(adapted)
        except LineasError:
            raise
        except Exception as error:  # peft and torch have their own, over many lines
            first = first_line(error)
            raise LineasError(f"the adapter {folder} does not fit this network: {first}.") from None
        if stored.keys() != here.keys():
            raise LineasError(f"the adapter {folder} is for other modules than this network has.")
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(strength)
        adapted.eval()
        yield


def _check_plain(folder: Path, config: Any) -> None:
    """Refuse what would change more than low-rank parts of linears, or could not be scaled or undone."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    extras = [
        name for name in ("modules_to_save", "use_dora", "trainable_token_indices") if getattr(config, name, None)
    ]
    if kind != "LORA" or config.bias != "none" or extras or config.init_lora_weights not in PLAIN_STARTS:
        raise LineasError(
            f"{folder} is not a plain LoRA ({kind}); adapters that change biases, whole modules or the weights below "
            "cannot be judged at a strength and taken off again."
        )


def _strip(network: nn.Module) -> None:
    """Put the modules back that adapters were laid around."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return
    layers = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in layers.items():
        if not any(name.startswith(f"{other}.") for other in layers):  # experts have one layer around another
            network.set_submodule(name, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded", "active_adapter"):
        vars(network).pop(attribute, None)
