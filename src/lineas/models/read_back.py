"""Reading back: checks that a written folder holds the complete model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig

from lineas.errors import LineasError, first_line


def verify_written(folder: Path, network: nn.Module) -> None:
    """Compare a written checkpoint with its network, tensor by tensor.

    The network that transformers (or diffusers) builds from the folder's config must have the same tensors, shapes and
    ties, and the files must hold the same values. If a class stores its tensors under other names, the whole checkpoint
    is loaded again and compared.
    """
    kind = type(network).__name__
    if not (folder / "config.json").is_file():
        files = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))) or "none"
        raise LineasError(
            f"a {kind} did not write itself whole: there is no config.json (weights: {files}); nothing was saved."
        )
    ours = {key: value for key, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    stored = {key: file for file in sorted(folder.glob("*.safetensors")) for key in _keys(file)}
    quantised = getattr(network, "hf_quantizer", None) is not None  # a twin would have plain weights
    twin = network if quantised else _twin(folder, network)
    if twin is None or not _stores(stored, ours, network):
        _compare_loaded(folder, network, ours)
        return
    theirs = twin.state_dict()
    other = sorted(ours.keys() ^ theirs.keys()) or [key for key in ours if ours[key].shape != theirs[key].shape]
    if other or _ties(twin) != _ties(network):
        difference = other[0] if other else "the tied weights"
        raise LineasError(f"a {kind} built from the written config differs in {difference}; nothing was saved.")
    for key, file in stored.items():
        with safe_open(file, "pt") as reader:
            if not _equal(reader.get_tensor(key), ours[key]):
                raise _differs(key, kind)


def verify_pipeline(folder: Path, pipeline: Any) -> None:
    """Compare each network of a written pipeline of diffusers with the original; see `verify_written`."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            if name not in index or not (folder / name).is_dir():
                raise LineasError(f"the pipeline did not write its {name}; nothing was saved.")
            verify_written(folder / name, part)


def use_one_dtype(folder: Path, pipeline: Any) -> None:
    """Change a written pipeline's configs so that diffusers loads all parts in one type by default.

    Without a given type, it loads its own parts in float32, but those of transformers in their config's type. Products
    of the two types fail.
    """
    for name, part in pipeline.components.items():
        file = folder / name / "config.json"
        if not isinstance(part, nn.Module) or hasattr(type(part), "load_config") or not file.is_file():
            continue
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {key: "float32" for key in ("dtype", "torch_dtype") if config.get(key) in ("float16", "bfloat16")}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stores(stored: dict[str, Path], ours: dict[str, torch.Tensor], network: nn.Module) -> bool:
    """Return whether a folder stores all tensors under the network's own names, and one of each tied group."""
    tied = {name: group for group in _ties(network) for name in group}
    whole = all(key in stored or not stored.keys().isdisjoint(tied.get(key, ())) for key in ours)
    return bool(stored) and whole and stored.keys() <= ours.keys()


def _twin(folder: Path, network: Any) -> nn.Module | None:
    """Return the network that a folder's config describes, without weights; None if it cannot be built."""
    try:
        with torch.device("meta"):
            if hasattr(type(network), "load_config"):  # of diffusers
                return type(network).from_config(type(network).load_config(folder))
            own = type(network).__module__.startswith("transformers.")
            config: Any = (AutoConfig if own else type(network.config)).from_pretrained(folder)
            kind = getattr(transformers, config.architectures[0]) if own else type(network)
            return kind(config) if kind is type(network) else None
    except Exception:  # the class cannot be built from its config, so the folder is loaded instead
        return None


def _compare_loaded(folder: Path, network: Any, ours: dict[str, torch.Tensor]) -> None:
    kind = type(network).__name__
    try:
        dtype = {"torch_dtype" if hasattr(type(network), "load_config") else "dtype": network.dtype}
        reloaded: Any = type(network).from_pretrained(folder, **dtype)
    except Exception as error:
        raise LineasError(f"the written {kind} cannot be read back ({first_line(error)}); nothing was saved.") from None
    theirs = reloaded.state_dict()
    if ours.keys() ^ theirs.keys():
        raise _differs(min(ours.keys() ^ theirs.keys()), kind)
    for key, value in ours.items():
        if not _equal(theirs[key], value.to(theirs[key].dtype)):  # all may be loaded in one type
            raise _differs(key, kind)


def _differs(key: str, kind: str) -> LineasError:
    return LineasError(
        f"{key} of the {kind} that was read back is not the one that was written; nothing was saved. Fold into a plain "
        "checkpoint, without adapters, wrappers or parametrizations."
    )


def _keys(file: Path) -> list[str]:
    with safe_open(file, "pt") as reader:
        return list(reader.keys())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal in type, shape and bits."""
    if type(other) not in (torch.Tensor, nn.Parameter) or one.dtype != other.dtype or one.shape != other.shape:
        return torch.equal(one, other)
    bits = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return torch.equal(*bits)


def _ties(network: nn.Module) -> set[frozenset[str]]:
    """Return the groups of names that share a parameter."""
    groups: dict[int, set[str]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}
