"""Weights from files: only safetensors are read, and the loader's report shows whether they fit the network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from lineas.errors import LineasError, first_line

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of files that can run code when they are read."""
MASKS = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|num_batches_tracked)$|\.(attn|attention)\.bias$")
"""The tables and masks that older versions of transformers stored and newer ones compute."""


def load_weights(kind: Any, where: str | Path, unused: str | None = None, **options: Any) -> Any:
    """Call `kind.from_pretrained` and refuse a checkpoint whose weights do not fit the network.

    Weights that match the regular expression `unused` may be missing.
    """
    try:
        network, report = kind.from_pretrained(where, output_loading_info=True, use_safetensors=True, **options)
    except OSError as error:
        folder = Path(where, options.get("subfolder") or "")
        if holds_pickles(folder) or "use_safetensors" in str(error):
            raise LineasError(no_pickles(folder if folder.is_dir() else where)) from error
        raise
    except SafetensorError as error:
        damaged = [file for file in sorted(Path(where).glob("*.safetensors")) if not _opens(file)]
        raise LineasError(f"{(damaged or [where])[0]} is damaged: {first_line(error)}; download it again.") from error
    check_report(network, report, str(where), unused)
    return network


def holds_pickles(folder: Path) -> bool:
    """Return whether a folder has weights in pickles and none in safetensors."""
    if not folder.is_dir():
        return False
    endings = {file.suffix for file in folder.iterdir()}
    return ".safetensors" not in endings and not endings.isdisjoint(PICKLES)


def no_pickles(where: str | Path) -> str:
    """Return the error message for weights in pickles."""
    return (
        f"{where} has weights in a pickle such as pytorch_model.bin and none in *.safetensors; reading a pickle can "
        "run any code, so lineas reads none. If you trust it, convert it once: load it with from_pretrained of "
        "transformers (or peft, diffusers) and call save_pretrained."
    )


def _opens(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def check_report(network: nn.Module, report: Mapping[str, Any], where: str, unused: str | None = None) -> None:
    """Refuse a network with missing, misshapen or extra weights; warn about parts for other tasks.

    An extra weight is refused if it belongs to a numbered part such as a block, to a module that the network has, or to
    a part of a pipeline. An extra part, such as another task's head or an image encoder, is left out with a warning.

    Args:
        report: `missing_keys`, `unexpected_keys`, `mismatched_keys` and `error_msgs`, as loaders of transformers and
            diffusers return them.
        unused: regular expression for weights that may be missing; None for none.
    """
    kind = type(network).__name__
    absent = (key for key in report["missing_keys"] if not MASKS.search(key))
    if missing := [key for key in absent if not (unused and re.search(unused, key))]:
        raise LineasError(
            f"{where} lacks {_some(missing)} of its {kind}, which would be random; get the whole checkpoint, or the "
            "config.json that belongs to it."
        )
    for key, stored, expected in sorted(report["mismatched_keys"]):
        raise LineasError(
            f"{where} has {key} with shape {list(stored)}, and its config.json asks for {list(expected)}; the two do "
            "not belong together."
        )
    if report.get("error_msgs"):
        raise LineasError(f"{where} could not be read into a {kind}: {str(next(iter(report['error_msgs'])))[:200]}.")
    extra = sorted(key for key in report["unexpected_keys"] if not MASKS.search(key))
    if dropped := [key for key in extra if _computes(network, key)]:
        raise LineasError(
            f"{where} has {_some(dropped)} that its {kind} has no place for, so it would compute something else; its "
            "config.json does not belong to these weights."
        )
    if extra:
        parts = dict.fromkeys(key.split(".")[0] for key in extra)
        warnings.warn(
            f"{where} has weights that a {kind} does not use, of {', '.join(list(parts)[:3])}; they are left out.",
            stacklevel=5,
        )


def _computes(network: nn.Module, key: str) -> bool:
    """Return whether an extra weight belongs to the network's computation, rather than to an extra part."""
    if type(network).__module__.startswith("diffusers."):
        return True
    quantised = getattr(getattr(network, "config", None), "quantization_config", None)
    if quantised and not key.endswith((".weight", ".bias")):
        return False  # additional tensors of the quantisation
    modules = {name for name, _ in network.named_modules()}
    for name in (key, f"{getattr(network, 'base_model_prefix', '')}.{key}"):
        part = name.rpartition(".")[0]
        while part and part not in modules:
            part = part.rpartition(".")[0]
        inside = name.removeprefix(f"{part}.")
        if part and ("." not in inside or re.search(r"(^|\.)\d+(\.|$)", name[: len(part) + 1 + inside.index(".")])):
            return True
    return False


def _some(keys: Collection[str]) -> str:
    """Describe some weights by their number and the first name."""
    first = min(keys, key=lambda key: [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")])
    return f"the weight {first}" if len(keys) == 1 else f"{len(keys)} weights, such as {first},"
