"""vLLM on the CPU, a live server or a process of its own, and the same model in plain transformers beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

import lineas

INTERVENTIONS = ("polite", "formal")
KEY = "a key of the tests"
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # else a connection that a client keeps open for its next request is cut after 5 s, sometimes while that request is
    # under way, and clients here do not try twice
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
}
SMALL = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64"]
STARTS_WITHIN = 300


@dataclass
class Server:
    """The address of a server, and the requests to it.

    Args:
        port: on this machine.
        model: as it calls itself.
    """

    port: int
    model: str

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def text(self, prompt: str, steering: str | None = None, model: str | None = None, **body: Any) -> str:
        """The greedy continuation of a prompt, steered by an extra argument or by the model's name."""
        if steering is not None:
            body["vllm_xargs"] = {"lineas": steering}
        made = self.client.completions.create(
            model=model or self.model, prompt=prompt, max_tokens=24, temperature=0, extra_body=body
        )
        return made.choices[0].text


@contextmanager
def serving(port: int, log: Path, *command: str, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A command that serves, until the block ends; its last lines are shown when it does not come up."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | QUIET | (environment or {})
        )
    try:
        until = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}") from None
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in float32, as any engine reads it."""
    return lineas.load(None, dtype="float32").save_pretrained(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> lineas.TextModel:
    """The same in plain transformers."""
    return lineas.load(checkpoint, dtype="float32")


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lineas serve` with two interventions and room for more, without compiled graphs."""
    log, port = tmp_path_factory.mktemp("server") / "log", 8765
    lineas_command = str(Path(sys.executable).parent / "lineas")
    command = [lineas_command, "serve", str(checkpoint), "--port", str(port), "--intervention", *INTERVENTIONS]
    command += ["--served-model-name", "smol", "--enforce-eager", *SMALL]
    with serving(port, log, *command, environment={"LINEAS_ADMIN_KEY": KEY}):
        yield Server(port, "smol")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for compiled graphs: stock's and the plugin's meet in it."""
    return tmp_path_factory.mktemp("graphs")


def continued(
    graphs: Path,
    model: Path,
    mode: str,
    out: Path,
    steering: list[str],
    interventions: str | None = None,
    **variables: str,
) -> list[dict]:
    """Return the texts of a process of its own; it is stock vLLM without interventions."""
    environment = os.environ | QUIET | {"VLLM_CACHE_ROOT": str(graphs), "VLLM_USE_V2_MODEL_RUNNER": "0"} | variables
    if interventions:
        environment["LINEAS_INTERVENTIONS"] = interventions
    script = str(Path(__file__).with_name("engine.py"))
    done = subprocess.run(
        [sys.executable, script, str(model), mode, str(out), *steering], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-40000:]
    return json.loads(out.read_text(encoding="utf-8"))
