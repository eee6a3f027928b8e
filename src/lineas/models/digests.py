"""Digests of everything that a model's results depend on: weights, settings, schedulers and tokenizers."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.errors import first_line
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.models.untouched import LIBRARIES, Unknowable, check_unchanged

CHUNK = 2**26
"""Number of weights that are copied to the CPU at once."""
PLACES = ("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_diffusers_version")
PLACES += ("cache_dir", "_use_default_values")
"""Settings without effect on results: where and how something was loaded."""
BOOKKEEPING = ("name_or_path", "warnings_issued", "_is_hf_initialized", "_hf_peft_config_loaded")
BOOKKEEPING += ("_output_capturing_hooks_installed", "_diffusers_hook")
OWN = {*vars(nn.Module()), *BOOKKEEPING} - {"training"}
"""Attributes of modules without effect on results."""
_digests: ContextVar[dict[int, tuple[nn.Module, str]] | None] = ContextVar("digests", default=None)


def description(model: TextModel | ImageModel) -> dict[str, Any]:
    """Return everything that a model's results depend on, as JSON: weights, settings, tokenizers, schedulers.

    Raises:
        Unknowable: when something acts on the model that the description cannot cover, such as a hook.
    """
    check_unchanged(model.network)
    if isinstance(model, ImageModel):
        components = sorted(model.pipeline.components.items())
        for network in (part for _, part in components if isinstance(part, nn.Module)):
            check_unchanged(network)
        parts = {name: describe_part(part) for name, part in components}
        parts |= {"pipeline": _digest(_plain(dict(model.pipeline.config))), **_plain(model.facts)}
    else:
        parts = {"network": describe_part(model.network), "tokenizer": describe_part(model.tokenizer)}
    return {"dtype": str(model.dtype), "device": model.device.type, **parts}


def describe_part(thing: Any) -> Any:
    """Return a JSON-serialisable description of a part of a model or of a judge, or raise `Unknowable`."""
    if inspect.ismethod(getattr(thing, "identity", None)):  # a judge with a description of its own
        return {"class": _kind(thing), **thing.identity()}
    if isinstance(thing, nn.Module):
        return _network(thing)
    if isinstance(thing, torch.Tensor):
        return weights_digest({"": thing})
    if hasattr(thing, "get_vocab") or hasattr(thing, "backend_tokenizer"):
        return _tokenizer(thing)
    if isinstance(thing, (list, tuple)):
        return [describe_part(one) for one in thing]
    if isinstance(thing, dict):
        return {str(name): describe_part(one) for name, one in thing.items()}
    if _is_plain(thing) or isinstance(thing, Path):
        return _plain(thing)
    settings = _settings(thing)
    if settings is None and type(thing).__module__.partition(".")[0] not in LIBRARIES:
        settings = {name: describe_part(value) for name, value in getattr(thing, "__dict__", {}).items()}
        settings["source"] = _source(type(thing))
    if settings is None or isinstance(thing, type) or inspect.isroutine(thing):
        raise Unknowable(f"what a {type(thing).__name__} does cannot be told from its settings.")
    return {"class": _kind(thing), "settings": _digest(settings)}


@contextmanager
def reading_weights_once() -> Iterator[None]:
    """Compute each network's `weights_digest` once within the block, in which weights must not change."""
    outer = _digests.get()
    token = _digests.set({} if outer is None else outer)
    try:
        yield
    finally:
        _digests.reset(token)


def weights_digest(network: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over all parameters' and buffers' names, types, shapes and bytes, or raise `Unknowable`."""
    digests = _digests.get()
    if digests is None or not isinstance(network, nn.Module):
        return _weights_digest(network)
    if id(network) not in digests:  # a reference to the network is stored, so that its id is not reused
        digests[id(network)] = network, _weights_digest(network)
    return digests[id(network)][1]


def _weights_digest(network: nn.Module | Mapping[str, torch.Tensor]) -> str:
    tensors = _tensors(network) if isinstance(network, nn.Module) else dict(network)
    by_id = {id(tensor): tensor for tensor in tensors.values()}  # so that tied weights are read once
    with ThreadPoolExecutor() as pool:  # hashing and copying release Python's global lock
        digests = dict(zip(by_id, pool.map(_bytes_digest, by_id.values())))
    return _digest(sorted([name, str(t.dtype), list(t.shape), digests[id(t)]] for name, t in tensors.items()))


def _network(network: nn.Module) -> dict[str, Any]:
    """Return the digests of a network's weights, settings, structure and other attributes."""
    attributes = {
        name: {key: _attribute(value) for key, value in vars(module).items() if key not in OWN}
        for name, module in network.named_modules()
    }
    return {
        "class": _kind(network),
        "weights": weights_digest(network),
        "config": _digest(_settings(network)),
        "generation": _digest(_settings(getattr(network, "generation_config", None))),
        "form": _digest([repr(network), attributes]),
    }


def _attribute(value: Any) -> Any:
    """Return a module's attribute if it is plain data, else its class or the function's name."""
    if _is_plain(value):
        return _plain(value)
    return f"{value.__module__}.{value.__qualname__}" if inspect.isroutine(value) else _kind(value)


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by name, also those that accelerate has offloaded."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        offloaded = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta and offloaded is not None:
                tensor = offloaded[key]
            if tensor is not None:
                tensors[f"{name}.{key}".lstrip(".")] = tensor
    if not any(tensor.is_meta for tensor in tensors.values()):  # the state of quantised weights has more tensors
        state = network.state_dict(keep_vars=True)
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)} | tensors
    return tensors


def _bytes_digest(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        raise Unknowable("some weights are not in memory.")
    digest = hashlib.sha256()
    try:
        for part in tensor.detach().reshape(-1).split(CHUNK):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Unknowable(f"the bytes of a {type(tensor).__name__} cannot be read ({first_line(error)}).") from None
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    """Return a digest of a tokenizer, without the padding and truncation that its last call has set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = backend.to_str()
        text = whole.partition('"added_tokens"')[2] or whole  # padding and truncation come before this key
    else:
        text = _as_saved(tokenizer)
    names = ("padding_side", "model_max_length", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token")
    settings = {name: getattr(tokenizer, name, None) for name in (*names, "chat_template", "special_tokens_map")}
    return _digest([_kind(tokenizer), text, _plain(settings)])


def _as_saved(tokenizer: Any) -> str:
    """Return a digest of the files that a tokenizer writes, if it has no serialised form."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # any error of a class that lineas does not know
            raise Unknowable(f"the {type(tokenizer).__name__} cannot be written ({first_line(error)}).") from None
        return files_digest(Path(folder))


def files_digest(folder: Path, pattern: str = "*", others: Iterable[Path] = (), excluded: Path | None = None) -> str:
    """Return the sha256 over names and bytes of all files below a folder but not below `excluded`, and of others."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob(pattern) if file.is_file()}
    files |= {str(file): file for file in others}
    if excluded is not None:
        files = {name: file for name, file in files.items() if excluded.resolve() not in file.resolve().parents}
    return _digest([[name, _file_digest(file)] for name, file in sorted(files.items())])


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _settings(thing: Any) -> Any:
    """Return the settings of a network, a scheduler, a processor or a config; None if it has none."""
    config = getattr(thing, "config", thing)
    if isinstance(config, Mapping):
        return _plain(dict(config))
    if not hasattr(config, "to_dict") or isinstance(config, type):
        return None
    private = {name: value for name, value in vars(config).items() if name.endswith("_implementation_internal")}
    return _plain({**config.to_dict(), **private})


def _plain(value: Any) -> Any:
    """Return a value in JSON-serialisable form, without the settings in `PLACES`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if key not in PLACES}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), _bytes_digest(value)]
    if hasattr(value, "tobytes"):  # arrays and images, whose repr is not complete
        return [type(value).__name__, str(getattr(value, "dtype", "")), hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _source(kind: type) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
