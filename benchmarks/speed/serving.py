"""What per-request steering costs on vLLM: stock, a folded checkpoint and the plugin side by side, on SmolLM2.

    .venv-serving/bin/python -m benchmarks.speed.serving [--rounds 7] [--requests 64] [--load 200]

Needs vLLM (`make test-serving` makes that venv). Three servers run at once, on ports of this machine, and only one
works at a time: stock vLLM, stock vLLM with a folded checkpoint, and the plugin. In every round each way gets 64
requests at once, of 32 tokens each, between two batches to stock; its ratio is its tokens a second by the mean of
those two, so what drifts on a machine drops out. "stock" is timed in the same way: its ratio is the noise. Latencies
are those of the single requests in these batches. Live-hooked transformers continues the same prompts in one batch.
Then a fourth server, in float32, gets 200 requests at once of mixed steering, and every answer is compared with the
one that the same request gets alone (in bfloat16 stock vLLM's own answers depend on what else is in the batch).
Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp
import numpy as np

import lineas
from benchmarks.common.record import about, row, save
from lineas.prompts import read_prompts

TOKENS = 32
PORTS = {"stock": 8801, "folded": 8802, "plugin": 8803, "load": 8804}
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
STARTS_WITHIN = 900


def start(stack: ExitStack, name: str, command: list[str], log: Path) -> None:
    """A server that ends with the stack; waits until it answers."""
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=os.environ | QUIET)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    until = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORTS[name]}/health", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server {name!r} did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(1)


async def ask(session: aiohttp.ClientSession, server: str, prompt: str, steering: str | None) -> tuple[str, float]:
    """One request's text, and the seconds it took."""
    body: dict[str, Any] = {
        "model": "smol",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    if steering:
        body["vllm_xargs"] = {"lineas": steering}
    begun = time.perf_counter()
    async with session.post(f"http://127.0.0.1:{PORTS[server]}/v1/completions", json=body) as answer:
        told = await answer.json()
        if answer.status != 200:
            raise SystemExit(f"{server} refused: {told}")
    return told["choices"][0]["text"], time.perf_counter() - begun


def batch(server: str, prompts: list[str], steering: list[str | None]) -> tuple[list[str], float, list[float]]:
    """Requests at once: their texts, the seconds of all, and of each."""

    async def together() -> list[tuple[str, float]]:
        limits = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(600)) as session:
            return await asyncio.gather(*(ask(session, server, p, s) for p, s in zip(prompts, steering)))

    begun = time.perf_counter()
    made = asyncio.run(together())
    return [text for text, _ in made], time.perf_counter() - begun, [seconds for _, seconds in made]


def load_test(prompts: list[str], count: int) -> dict[str, Any]:
    """Many requests at once, mixed, against the same requests one after another."""
    mixed = [
        (f"{prompts[i % len(prompts)]}", f"polite:{(i % 10) / 4},formal:{(i % 7) / 3}" if i % 5 else None)
        for i in range(count)
    ]
    texts, seconds, each = batch("load", [p for p, _ in mixed], [s for _, s in mixed])
    alone = {request: batch("load", [request[0]], [request[1]])[0][0] for request in dict.fromkeys(mixed)}
    different = [i for i, (request, text) in enumerate(zip(mixed, texts)) if alone[request] != text]
    return {
        "requests": count,
        "answered": len(texts),
        "different requests": len(alone),
        "different answers": len(set(alone.values())),
        "not as alone": len(different),
        "seconds": seconds,
        "latency": {"p50": float(np.quantile(each, 0.5)), "p99": float(np.quantile(each, 0.99))},
    }


def main() -> None:
    """Start the servers, time every way, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--load", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16", help="of all servers and of transformers")
    options = parser.parse_args()
    count = options.requests
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = lineas.load(None, dtype="float32")
        formal = lineas.Intervention.load("formal")
        plain = base.save_pretrained(scratch / "plain")
        folded = lineas.fold(base, formal).save_pretrained(scratch / "folded")
        live = lineas.load(plain, dtype=options.dtype)
        common = ["--max-model-len", "512", "--max-num-seqs", str(max(count, 64)), "--served-model-name", "smol"]
        timed = [*common, "--dtype", options.dtype, "--no-enable-prefix-caching"]
        vllm = [sys.executable, "-m", "lineas.vllm_plugin", "serve"]
        for name, folder in (("stock", plain), ("folded", folded)):
            start(stack, name, [*vllm, str(folder), "--port", str(PORTS[name]), *timed], scratch / f"{name}.log")
        steered = [
            str(Path(sys.executable).parent / "lineas"),
            "serve",
            str(plain),
            "--intervention",
            "polite",
            "formal",
        ]
        start(stack, "plugin", [*steered, "--port", str(PORTS["plugin"]), *timed], scratch / "plugin.log")

        prompts = (read_prompts("lineas:polite/prompts") * (1 + count // 32))[:count]
        strengths = [f"formal:{i / count:.4f}" for i in range(1, count + 1)]
        nothing: list[str | None] = [None] * count

        def transformers() -> list[float]:
            begun = time.perf_counter()
            with lineas.steer(live, formal):
                live.continue_ids(
                    [live.tokenizer(prompt).input_ids for prompt in prompts], TOKENS, 0.0, 1.0, 1.0, 0, count
                )
            return [time.perf_counter() - begun] * count

        ways: dict[str, Callable[[], list[float]]] = {
            "stock vLLM": lambda: batch("stock", prompts, nothing)[2],
            "folded checkpoint": lambda: batch("folded", prompts, nothing)[2],
            "plugin, unsteered requests": lambda: batch("plugin", prompts, nothing)[2],
            "plugin, one intervention": lambda: batch("plugin", prompts, ["formal:1"] * count)[2],
            "plugin, a strength a request": lambda: batch("plugin", prompts, strengths)[2],
            "live-hooked transformers": transformers,
        }
        for way in ways.values():
            way()  # warms up
        rates: dict[str, list[float]] = {name: [] for name in ways}
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        latencies: dict[str, list[float]] = {name: [] for name in ways}
        stock = ways["stock vLLM"]
        before = max(stock())
        for _ in range(options.rounds):
            for name, way in ways.items():
                each = way()
                after = max(stock())
                rates[name].append(count * TOKENS / max(each))
                ratios[name].append(mean([before, after]) / max(each))
                latencies[name] += each
                before = after
        rows = [
            row(
                name,
                ratios[name],
                **{"tokens a second": median(rates[name])},
                latency={f"p{p}": float(np.quantile(latencies[name], p / 100)) for p in (50, 99)},
                rates=rates[name],
            )
            for name in ways
        ]
        for told in rows:
            low, high = told["quartiles"]
            print(
                f"{told['way']:28} {told['tokens a second']:6.0f} tokens/s  x {told['ratio']:.3f}"
                f" ({low:.3f} to {high:.3f})  p50 {told['latency']['p50']:.2f} s  p99 {told['latency']['p99']:.2f} s",
                flush=True,
            )
        loaded = [*steered, "--port", str(PORTS["load"]), *common, "--dtype", "float32"]
        start(stack, "load", loaded, scratch / "load.log")
        load = load_test(prompts, options.load)
        print(load)
    from vllm import __version__  # pyright: ignore[reportMissingImports]

    about_it = about() | {"vllm": __version__}
    save("serving", {"about": about_it, "options": vars(options), "rows": rows, "load": load})


if __name__ == "__main__":
    main()
