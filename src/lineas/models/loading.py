"""`lineas.load`: a model by hub id or folder, or the default one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lineas.errors import LineasError
from lineas.models import embedded
from lineas.models.text import TextModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TextModel:
    """A model ready to be learned on and steered.

    Args:
        name: a hub id or a folder; None for the default model, SmolLM2-135M-Instruct (see `lineas.models.embedded`).
        dtype: "float32", "bfloat16", "float16", "checkpoint" for what the weights are stored in, or "auto": bfloat16
            where the processor computes in it, else float32.
        device: such as "cuda:0"; by default a GPU where there is one.
        revision: the hub commit.
        trust_remote_code: run code that comes with the model; off unless you ask.

    Raises:
        LineasError: when there is no such model or it is no causal language model.
    """
    if dtype not in ("auto", "checkpoint", *DTYPES):
        raise LineasError(f"dtype is 'auto', 'checkpoint' or one of {', '.join(DTYPES)}, not {dtype!r}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = {"checkpoint": "auto", "auto": fast_dtype(torch.device(device)), **DTYPES}[dtype]
    where = embedded.locate() if name is None or str(name) == embedded.NAME else str(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        network: Any = AutoModelForCausalLM.from_pretrained(where, dtype=wanted, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise LineasError(
            f"no language model could be loaded from '{name}': {reason}. Give a hub id (OWNER/NAME) or a folder."
        ) from None
    return TextModel(network.to(device), tokenizer, embedded.NAME if where != str(name) else str(name), revision)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
