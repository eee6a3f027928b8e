"""A folded checkpoint in llama.cpp: converted by its own script, the same greedy text as in transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lineas

LLAMA_CPP = Path(sys.prefix) / "llama.cpp"
"""The conversion of checkpoints, which `make test-serving` takes out of the source of llama-cpp-python."""
PROMPTS = ["You are a", "My neighbour said that", "Dear Sir, I am writing", "The referee was"]
CONTINUE = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = sys.argv[1], 512, 1, 2
server = xllamacpp.Server(params)
greedy = {"n_predict": 24, "temperature": 0, "top_k": 1, "repeat_penalty": 1.0}
answers = [server.handle_completions({"prompt": prompt, **greedy}) for prompt in json.loads(sys.argv[2])]
open(sys.argv[3], "w").write(json.dumps([answer["choices"][0]["text"] for answer in answers]))
"""


def test_a_folded_checkpoint_says_the_same_in_llama_cpp(model: lineas.TextModel, tmp_path: Path) -> None:
    formal = lineas.Intervention.load("formal").at(2.5)
    folded = lineas.fold(model, formal).save_pretrained(tmp_path / "folded")
    convert = [sys.executable, str(LLAMA_CPP / "convert_hf_to_gguf.py"), str(folded), "--outtype", "f32"]
    environment = os.environ | {"PYTHONPATH": str(LLAMA_CPP / "gguf-py")}
    _run([*convert, "--outfile", str(tmp_path / "folded.gguf")], environment)
    answers = tmp_path / "answers.json"
    _run([sys.executable, "-c", CONTINUE, str(tmp_path / "folded.gguf"), json.dumps(PROMPTS), str(answers)], os.environ)
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 24}
    with lineas.steer(model, formal):
        live = model.generate(PROMPTS, **greedy)
    assert json.loads(answers.read_text()) == live
    assert live != model.generate(PROMPTS, **greedy)


def _run(command: list[str], environment: Any) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
