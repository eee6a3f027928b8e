"""Reading back: a folder that was written holds the model that it was written from, whole."""

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
    """Compare a checkpoint with the network that it was written from, tensor by tensor.

    The network that transformers (or diffusers) makes of the folder's config must have the same tensors, shapes and
    ties, and the files must hold their values, read one after the other. Where a class stores its tensors under other
    names the whole is loaded again and compared.

    Raises:
        LineasError: saying what differs.
    """
    kind = type(network).__name__
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix == ".safetensors")) or "nothing"
        raise LineasError(
            f"a {kind} did not write itself whole: there is no config.json, and of weights {held}; nothing was kept."
        )
    ours = {key: value for key, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    stored = {key: file for file in sorted(folder.glob("*.safetensors")) for key in _keys(file)}
    quantised = getattr(network, "hf_quantizer", None) is not None  # its twin's weights would be plain
    twin = network if quantised else _twin(folder, network)
    if twin is None or not _stores(stored, ours, network):
        _compare_loaded(folder, network, ours)
        return
    theirs = twin.state_dict()
    other = sorted(ours.keys() ^ theirs.keys()) or [key for key in ours if ours[key].shape != theirs[key].shape]
    if other or _ties(twin) != _ties(network):
        at = other[0] if other else "the tied weights"
        raise LineasError(
            f"a {kind} made of the config that was written differs from this one in {at}; nothing was kept."
        )
    for key, file in stored.items():
        with safe_open(file, "pt") as reader:
            if not _equal(reader.get_tensor(key), ours[key]):
                raise _differs(key, kind)


def verify_pipeline(folder: Path, pipeline: Any) -> None:
    """The same for every network of a pipeline of diffusers.

    Raises:
        LineasError: saying what differs.
    """
    described = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            if name not in described or not (folder / name).is_dir():
                raise LineasError(f"the pipeline did not write its {name}; nothing was kept.")
            verify_written(folder / name, part)


def read_alike(folder: Path, pipeline: Any) -> None:
    """Let diffusers read all parts of a pipeline in one type, also where none is named.

    Unless told, it reads its own parts in float32, but leaves those of transformers to the type that their config
    names; two types do not multiply.
    """
    for name, part in pipeline.components.items():
        file = folder / name / "config.json"
        if not isinstance(part, nn.Module) or hasattr(type(part), "load_config") or not file.is_file():
            continue
        described = json.loads(file.read_text(encoding="utf-8"))
        for key in ("dtype", "torch_dtype"):
            if described.get(key) in ("float16", "bfloat16"):
                described[key] = "float32"
        file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stores(stored: dict[str, Path], ours: dict[str, torch.Tensor], network: nn.Module) -> bool:
    """Return whether a folder stores a network under its own names, of tied tensors at least one."""
    tied = {name: group for group in _ties(network) for name in group}
    missing = [key for key in ours if key not in stored and not any(name in stored for name in tied.get(key, ()))]
    return bool(stored) and not missing and stored.keys() <= ours.keys()


def _twin(folder: Path, network: Any) -> nn.Module | None:
    """The network that a folder's config makes, without weights; None where it cannot be made so."""
    try:
        with torch.device("meta"):
            if hasattr(type(network), "load_config"):  # of diffusers
                return type(network).from_config(type(network).load_config(folder))
            own = type(network).__module__.startswith("transformers.")
            config: Any = (AutoConfig if own else type(network.config)).from_pretrained(folder)
            kind = getattr(transformers, config.architectures[0]) if own else type(network)
            return kind(config) if kind is type(network) else None
    except Exception:  # whatever a class of others does with a config, the folder is read whole instead
        return None


def _compare_loaded(folder: Path, network: Any, ours: dict[str, torch.Tensor]) -> None:
    kind = type(network).__name__
    try:
        dtype = {"torch_dtype" if hasattr(type(network), "load_config") else "dtype": network.dtype}
        again: Any = type(network).from_pretrained(folder, **dtype)
    except Exception as error:
        raise LineasError(
            f"the {kind} that was written cannot be read back ({first_line(error)}); nothing was kept."
        ) from None
    theirs = again.state_dict()
    if ours.keys() ^ theirs.keys():
        raise _differs(sorted(ours.keys() ^ theirs.keys())[0], kind)
    for key, value in ours.items():
        if not _equal(theirs[key], value.to(theirs[key].dtype)):  # it may be loaded in one type
            raise _differs(key, kind)


def _differs(key: str, kind: str) -> LineasError:
    return LineasError(
        f"{key} of the {kind} that was read back is not the one that was to be written; nothing was kept. Fold into a "
        "plain checkpoint, without adapters, wrappers or parametrizations."
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
    """The names that share one parameter."""
    groups: dict[int, set[str]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}
