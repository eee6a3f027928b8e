"""`lineas.load`: a model by hub id or folder, or the default one."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from time import thread_time
from typing import Any

import torch
from huggingface_hub import file_exists, try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from lineas.errors import LineasError
from lineas.models import embedded
from lineas.models.image import SETTINGS, ImageModel
from lineas.models.text import TextModel

SHAPES = "shapes"
"""The image model that comes with lineas."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
JUDGE = "judge.safetensors"
"""Beside a pipeline that comes with a judge of its pictures."""
INDEX = "model_index.json"
"""What a pipeline of diffusers has and a language model has not."""


def load(
    name: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TextModel | ImageModel:
    """A model ready to be learned on and steered: a language model, or a text-to-image pipeline.

    Args:
        name: a hub id or a folder; None for the default model, SmolLM2-135M-Instruct (see `lineas.models.embedded`);
            "shapes" for the small image model that comes with lineas.
        dtype: "float32", "bfloat16", "float16", "checkpoint" for what the weights are stored in, or "auto": bfloat16
            where the processor is faster in it, else float32.
        device: such as "cuda:0", or "auto" to let accelerate spread a language model over all GPUs, then memory, then
            disk; by default what the variable LINEAS_DEVICE says, else a GPU where there is one.
        revision: the hub commit.
        trust_remote_code: run code that comes with the model; off unless you ask.

    Raises:
        LineasError: when there is no such model, or it is neither a language model (alone, or in a network that also
            reads pictures) nor a pipeline.
    """
    if dtype not in ("auto", "checkpoint", *DTYPES):
        raise LineasError(f"dtype is 'auto', 'checkpoint' or one of {', '.join(DTYPES)}, not {dtype!r}.")
    device = device or os.environ.get("LINEAS_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = _kind(device)
    wanted = fast_dtype(kind) if dtype == "auto" else {"checkpoint": "auto", **DTYPES}[dtype]
    where = _where(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if is_pipeline(where, revision):
        if device == "auto":
            raise LineasError("a pipeline is not spread over devices; name one, such as device='cuda:0'.")
        return _load_pipeline(str(where), str(name), wanted, device, options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        network: Any = _load_network(where, dtype=wanted, device_map="auto" if device == "auto" else None, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LineasError(
            f"no model could be loaded from '{name}': {_reason(error)}. Give a hub id (OWNER/NAME) or a folder."
        ) from None
    if device != "auto":
        network = network.to(device)
    return TextModel(network, tokenizer, embedded.NAME if where != str(name) else str(name), revision)


def _where(name: str | Path | None) -> str:
    """The folder of a model that comes with lineas, or the name as it is."""
    if name is None or str(name) == embedded.NAME:
        return embedded.locate()
    if str(name) == SHAPES and not Path(name).exists():
        return str(files("lineas") / "data" / "models" / SHAPES)
    return str(name)


def _load_network(where: str, **options: Any) -> Any:
    """A causal language model, or one that also reads pictures; a ValueError where it is neither."""
    try:
        return AutoModelForCausalLM.from_pretrained(where, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        try:
            return AutoModelForImageTextToText.from_pretrained(where, **options)
        except ValueError:
            raise error from None


def load_text(name: str | Path | None = None, **options: Any) -> TextModel:
    """`load` where only a language model will do.

    Raises:
        LineasError: when there is none of this name, or it draws.
    """
    model = load(name, **options)
    if not isinstance(model, TextModel):
        raise LineasError(f"{model.name} draws images; this needs a language model.")
    return model


def is_pipeline(where: str | Path, revision: str | None = None) -> bool:
    """Whether a folder, or what a hub id names, is a pipeline of diffusers; False where the hub does not answer."""
    folder = Path(where)
    if folder.exists() or str(where).count("/") != 1:
        return (folder / INDEX).is_file()
    if isinstance(try_to_load_from_cache(str(where), INDEX, revision=revision), str):
        return True
    if isinstance(try_to_load_from_cache(str(where), "config.json", revision=revision), str):
        return False
    try:
        return file_exists(str(where), INDEX, revision=revision)
    except Exception:  # whatever stands between here and the hub is told when the model is loaded
        return False


def _load_pipeline(where: str, name: str, wanted: Any, device: str, options: dict[str, Any]) -> ImageModel:
    try:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    except ImportError:
        raise LineasError(f"{where} draws images, which needs diffusers: pip install 'lineas[images]'.") from None
    newer = tuple(map(int, version("diffusers").split(".")[:2])) >= (0, 42)
    try:
        if wanted == "auto":
            where = where if Path(where).is_dir() else str(DiffusionPipeline.download(where, **options))
            wanted = _stored_dtype(Path(where))
        kinds = {} if wanted is None else {"dtype" if newer else "torch_dtype": wanted}
        pipeline: Any = DiffusionPipeline.from_pretrained(where, **kinds, **options)
    except (OSError, ValueError, KeyError) as error:
        raise LineasError(f"no pipeline could be loaded from '{where}': {_reason(error)}.") from None
    settings = Path(where) / SETTINGS
    drawing = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    model = ImageModel(pipeline.to(device), name, options["revision"], **drawing)
    model.judge = str(where) if (Path(where) / JUDGE).is_file() else None
    return model


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """The type that a pipeline's weights are stored in, the widest of several; None where there are none."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found: torch.dtype | None = None
    for part in json.loads((folder / INDEX).read_text(encoding="utf-8")):
        for file in (folder / part).glob("*.safetensors"):
            if "." in file.stem:  # a variant, which is not what is loaded
                continue
            with safe_open(file, "pt") as weights:
                kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
            for kind in kinds & names.keys():
                found = names[kind] if found is None else torch.promote_types(found, names[kind])
    return found


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")


def _kind(device: str) -> torch.device:
    """What a device's name means; of "auto" the first device that is taken."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = torch.device(device)
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError):  # no such name; none here
        raise LineasError(
            f"there is no device '{device}' here; name one such as cpu or cuda:0, or auto, or leave it out."
        ) from None
    return made


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes faster in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and _bfloat16_pays():
        return torch.bfloat16
    return torch.float32


@cache
def _bfloat16_pays() -> bool:
    """Whether this processor is clearly faster in bfloat16, tried once: those with instructions for it multiply
    matrices at half to four times their rate in float32."""
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    seconds = _seconds()
    return seconds[torch.bfloat16] < seconds[torch.float32] / 1.5


def _seconds() -> dict[torch.dtype, float]:
    """By type, the least time of several for a product of matrices; a tenth of a second in all.

    It is this thread's own time, so that other programs at work do not count.
    """
    sides = {d: (torch.ones(256, 768, dtype=d), torch.ones(768, 768, dtype=d)) for d in (torch.bfloat16, torch.float32)}
    taken: dict[torch.dtype, list[float]] = {dtype: [] for dtype in sides}
    for _ in range(8):
        for dtype, (rows, weights) in sides.items():
            begun = thread_time()
            nn.functional.linear(rows, weights)
            taken[dtype].append(thread_time() - begun)
    return {dtype: min(times) for dtype, times in taken.items()}
