"""`lineas.load`: load a model by hub id or folder, or the default model."""

from __future__ import annotations

import json
import math
import os
from functools import cache, reduce
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import thread_time
from typing import Any

import torch
from huggingface_hub import file_exists, try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from lineas.errors import LineasError, needing, reading
from lineas.models import default_model
from lineas.models.image import SETTINGS, ImageModel
from lineas.models.loader_report import holds_pickles, load_weights, no_pickles
from lineas.models.text import TextModel

SHAPES = "shapes"
"""Name of the image model that comes with lineas."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = "Give a hub id (OWNER/NAME) or a folder."
JUDGE = "judge.safetensors"
"""Name of the file with a judge of a pipeline's images."""
INDEX = "model_index.json"
"""Name of the file that a pipeline of diffusers has, unlike a language model."""


def load(
    name: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TextModel | ImageModel:
    """Load a language model or a text-to-image pipeline.

    Args:
        name: a hub id or a folder; None for the default model, SmolLM2-135M-Instruct (see
            `lineas.models.default_model`); "shapes" for the small image model that comes with lineas.
        dtype: "float32", "bfloat16", "float16", "checkpoint" for the type of the stored weights, or "auto" (default):
            bfloat16 if the device is faster in it, else float32.
        device: a device such as "cuda:0", or "auto" to let accelerate spread a language model over all GPUs, then
            memory, then disk; by default the environment variable LINEAS_DEVICE, else a GPU if there is one.
        revision: the hub commit; None for the latest.
        trust_remote_code: whether to run code that comes with the model; default False.

    Raises:
        LineasError: when there is no such model, it is neither a language model (or multimodal model) nor a pipeline, a
            file is damaged, or the weights do not fit the network.
    """
    if dtype not in ("auto", "checkpoint", *DTYPES):
        raise LineasError(f"dtype is 'auto', 'checkpoint' or one of {', '.join(DTYPES)}, not {dtype!r}.")
    device = device or os.environ.get("LINEAS_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    first_device = _device(device)
    weights_dtype = fast_dtype(first_device) if dtype == "auto" else {"checkpoint": "auto", **DTYPES}[dtype]
    where = _where(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    failure, hint = f"no model could be loaded from '{name or where}'", "" if _is_folder(where) else NAMES
    with reading(failure, hint):
        draws_images = is_pipeline(where, revision)
    if draws_images:
        if device == "auto":
            raise LineasError(
                "a pipeline is not spread over devices; name one: LINEAS_DEVICE=cuda:0 (device='cuda:0')."
            )
        return _load_pipeline(str(where), str(name), weights_dtype, device, options)
    with reading(failure, hint):
        base = _base_of_adapter(where, options)
    no_tokenizer = f"{where} is an adapter of peft for {base}, and has no tokenizer that could be read"
    put_beside = f"Load {base}, or put its tokenizer beside the adapter."
    with reading(failure, hint) if base is None else reading(no_tokenizer, put_beside):
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    with reading(failure, hint):
        device_map = "auto" if device == "auto" else None
        network: Any = _load_network(base or where, dtype=weights_dtype, device_map=device_map, **options)
        if base is not None:
            network.load_adapter(where, adapter_kwargs={"revision": revision})
        if device != "auto":
            network = network.to(device)
    return TextModel(network, tokenizer, default_model.NAME if where != str(name) else str(name), revision)


def _where(name: str | Path | None) -> str:
    """Return the folder of a model that comes with lineas, or the name itself."""
    if name is None or str(name) == default_model.NAME:
        return default_model.locate()
    if str(name) == SHAPES and not Path(name).exists():
        return str(files("lineas") / "data" / "models" / SHAPES)
    return str(name)


def _is_folder(where: str) -> bool:
    try:
        return bool(where) and Path(where).is_dir()
    except (OSError, ValueError):  # no valid file name
        return False


def _load_network(where: str, **options: Any) -> Any:
    """Load a causal language model, or a multimodal one; raise a ValueError if it is neither."""
    try:
        return load_weights(AutoModelForCausalLM, where, ignore_mismatched_sizes=True, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        try:
            return load_weights(AutoModelForImageTextToText, where, ignore_mismatched_sizes=True, **options)
        except LineasError:
            raise
        except ValueError:
            raise error from None


def _base_of_adapter(where: str, options: dict[str, Any]) -> str | None:
    """Return the name of an adapter's base model; None if there is no adapter of peft."""
    file = find_adapter_config_file(where, revision=options["revision"])
    if file is None:
        return None
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise LineasError(f"{file} is an adapter of peft that does not say for which model; load that model instead.")
    if holds_pickles(Path(file).parent):
        raise LineasError(no_pickles(where))
    if find_spec("peft") is None:
        raise LineasError(
            f"{where} is an adapter of peft for {base}, which needs peft: pip install 'lineas[evaluate]'."
        )
    return base


def load_text(name: str | Path | None = None, **options: Any) -> TextModel:
    """Load a language model, with the arguments of `load`, and refuse one that draws images."""
    model = load(name, **options)
    if not isinstance(model, TextModel):
        raise LineasError(f"{model.name} draws images; this needs a language model.")
    return model


def is_pipeline(where: str | Path, revision: str | None = None) -> bool:
    """Return whether a folder or hub id is a pipeline of diffusers; False if the hub does not answer."""
    folder = Path(where)
    if folder.exists() or str(where).count("/") != 1:
        return (folder / INDEX).is_file()
    for file in (INDEX, "config.json"):
        if isinstance(try_to_load_from_cache(str(where), file, revision=revision), str):
            return file == INDEX
    try:
        return file_exists(str(where), INDEX, revision=revision)
    except Exception:  # loading the model will report the error
        return False


def _load_pipeline(where: str, name: str, weights_dtype: Any, device: str, options: dict[str, Any]) -> ImageModel:
    with needing(f"{where} draws images, which needs diffusers", "images"):
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    newer = tuple(map(int, version("diffusers").split(".")[:2])) >= (0, 42)
    with reading(f"no pipeline could be loaded from '{where}'"):
        folder = Path(where)
        if not folder.is_dir():
            folder = Path(DiffusionPipeline.download(where, use_safetensors=True, **options))
        dtype = _stored_dtype(folder) if weights_dtype == "auto" else weights_dtype
        further = {} if dtype is None else {"dtype" if newer else "torch_dtype": dtype}
        further["trust_remote_code"] = options["trust_remote_code"]
        parts = {part: _load_part(kind, folder / part, dtype) for part, kind in _parts(folder).items()}
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **further, **parts)
        pipeline.register_to_config(_name_or_path=where)
        pipeline = pipeline.to(device)
    file = folder / SETTINGS
    failure = f"{file} does not hold valid drawing settings for '{where}'"
    with reading(failure):
        drawing = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        try:
            model = ImageModel(pipeline, name, options["revision"], **drawing)
        except LineasError as error:
            raise LineasError(f"{failure}: {error}") from None
    model.judge = str(folder) if (folder / JUDGE).is_file() else None
    return model


def _parts(folder: Path) -> dict[str, Any]:
    """Return the classes of a pipeline's networks by name, as far as diffusers and transformers define them."""
    import diffusers
    import transformers

    kinds = {}
    for part, entry in json.loads((folder / INDEX).read_text(encoding="utf-8")).items():
        if not isinstance(entry, list) or len(entry) != 2 or None in entry:
            continue
        library, name = map(str, entry)
        if not (folder / part).is_dir():  # diffusers would search elsewhere, or start with an empty vocabulary
            raise LineasError(f"{folder} lacks its folder {part}, a {name}; get the whole pipeline.")
        module = {"diffusers": diffusers, "transformers": transformers}.get(library)
        module = getattr(diffusers.pipelines, library, None) if module is None else module  # a safety checker's, e.g.
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            kinds[part] = kind
    return kinds


def _load_part(kind: Any, folder: Path, dtype: torch.dtype | None) -> nn.Module:
    if hasattr(kind, "load_config"):  # a class of diffusers
        return load_weights(kind, folder, torch_dtype=dtype)
    return load_weights(kind, folder, dtype=dtype, ignore_mismatched_sizes=True)


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the widest type of a pipeline's stored weights; None if there are none."""
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    names: set[str] = set()
    parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for file in chain.from_iterable((folder / part).glob("*.safetensors") for part in parts):
        if "." not in file.stem:  # else a variant, which is not loaded
            with safe_open(file, "pt") as weights:
                names |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    stored = [dtypes[name] for name in names & dtypes.keys()]
    return reduce(torch.promote_types, stored) if stored else None


def _device(name: str) -> torch.device:
    """Return the device of this name; for "auto" the first one that is used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # raises for meta, which holds no numbers
    except (RuntimeError, AssertionError):  # an unknown name, or a device that this machine lacks
        raise LineasError(
            f"there is no device '{name}' here; name one such as cpu or cuda:0, or auto, or leave it out."
        ) from None
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device computes faster in it, else float32."""
    on_gpu, on_cpu = device.type == "cuda", device.type == "cpu"
    pays = (on_gpu and torch.cuda.is_bf16_supported()) or (on_cpu and _bfloat16_pays())
    return torch.bfloat16 if pays else torch.float32


@cache
def _bfloat16_pays() -> bool:
    """Return whether this CPU is clearly faster in bfloat16, measured once.

    CPUs with instructions for bfloat16 multiply matrices at half to four times their speed in float32.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    seconds = _seconds()
    return seconds[torch.bfloat16] < seconds[torch.float32] / 1.5


def _seconds() -> dict[torch.dtype, float]:
    """Return, for each type, the minimum time of a matrix product, in seconds of this thread's CPU time."""
    seconds = {torch.bfloat16: math.inf, torch.float32: math.inf}
    matrices = {d: (torch.ones(256, 768, dtype=d), torch.ones(768, 768, dtype=d)) for d in seconds}
    for dtype in 8 * [*seconds]:
        start = thread_time()
        nn.functional.linear(*matrices[dtype])
        seconds[dtype] = min(seconds[dtype], thread_time() - start)
    return seconds
