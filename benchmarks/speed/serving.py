"""The cost of per-request steering on vLLM: stock, a folded checkpoint and the plugin side by side, on SmolLM2.

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

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.splits import take
from benchmarks.speed.rounds import interleaved, row

if TYPE_CHECKING:
    import aiohttp

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
    """Start a server that ends with the stack, and wait until it answers."""
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
    """Return the text that answers a request, and the seconds it took."""
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
    async with session.post(f"http://127.0.0.1:{PORTS[server]}/v1/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise SystemExit(f"{server} refused: {answer}")
    return answer["choices"][0]["text"], time.perf_counter() - begun


def batch(server: str, prompts: Sequence[str], steering: Sequence[str | None]) -> tuple[list[str], list[float]]:
    """Send requests at once; return their texts, and the seconds of each."""
    import aiohttp

    async def together() -> list[tuple[str, float]]:
        limits = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(600)) as session:
            return await asyncio.gather(*(ask(session, server, p, s) for p, s in zip(prompts, steering)))

    answers = asyncio.run(together())
    return [text for text, _ in answers], [seconds for _, seconds in answers]


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of requests' seconds."""
    import numpy as np

    return {f"p{percent}": float(np.quantile(seconds, percent / 100)) for percent in (50, 99)}


def load_test(prompts: list[str], count: int) -> dict[str, Any]:
    """Send many requests at once, mixed, and compare the answers with those to the same requests one after another."""
    mixed = [
        (prompts[i % len(prompts)], f"polite:{(i % 10) / 4},formal:{(i % 7) / 3}" if i % 5 else None)
        for i in range(count)
    ]
    begun = time.perf_counter()
    texts, each = batch("load", [prompt for prompt, _ in mixed], [steering for _, steering in mixed])
    seconds = time.perf_counter() - begun
    alone = {request: batch("load", [request[0]], [request[1]])[0][0] for request in dict.fromkeys(mixed)}
    return {
        "requests": count,
        "answered": len(texts),
        "different requests": len(alone),
        "different answers": len(set(alone.values())),
        "not as alone": sum(alone[request] != text for request, text in zip(mixed, texts)),
        "seconds": seconds,
        "latency": latency(each),
    }


def main() -> None:
    """Start the servers, time every way, print and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--load", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16", help="of all servers and of transformers")
    options = parser.parse_args()
    count = options.requests
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = record.text_model(None, dtype="float32")
        formal = lineas.Intervention.load("formal")
        plain = base.save_pretrained(scratch / "plain")
        folded = lineas.fold(base, formal).save_pretrained(scratch / "folded")
        live = record.text_model(plain, dtype=options.dtype)
        common = ["--max-model-len", "512", "--max-num-seqs", str(max(count, 64)), "--served-model-name", "smol"]
        timed = [*common, "--dtype", options.dtype, "--no-enable-prefix-caching"]
        vllm = [sys.executable, "-m", "lineas.vllm_plugin", "serve"]
        for name, folder in (("stock", plain), ("folded", folded)):
            start(stack, name, [*vllm, str(folder), "--port", str(PORTS[name]), *timed], scratch / f"{name}.log")
        steered = [sys.executable, "-m", "lineas", "serve", str(plain), "--intervention", "polite", "formal"]
        start(stack, "plugin", [*steered, "--port", str(PORTS["plugin"]), *timed], scratch / "plugin.log")

        prompts = (take("serving", "judging", "lineas:polite/prompts") * (1 + count // 32))[:count]
        tokens = [live.tokenizer(prompt).input_ids for prompt in prompts]
        nothing = [None] * count

        def transformers() -> list[float]:
            begun = time.perf_counter()
            with lineas.steer(live, formal):
                live.continue_ids(tokens, TOKENS, 0.0, 1.0, 1.0, 0, count)
            return [time.perf_counter() - begun] * count

        strengths = [f"formal:{i / count:.4f}" for i in range(1, count + 1)]
        ways: dict[str, Callable[[], list[float]]] = {
            "stock vLLM": lambda: batch("stock", prompts, nothing)[1],
            "folded checkpoint": lambda: batch("folded", prompts, nothing)[1],
            "plugin, unsteered requests": lambda: batch("plugin", prompts, nothing)[1],
            "plugin, one intervention": lambda: batch("plugin", prompts, ["formal:1"] * count)[1],
            "plugin, a strength a request": lambda: batch("plugin", prompts, strengths)[1],
            "live-hooked transformers": transformers,
        }
        rows = []
        for name, runs in interleaved(ways, lambda: max(ways["stock vLLM"]()), options.rounds).items():
            rates = [count * TOKENS / max(each) for each, _ in runs]
            line = row(
                name,
                [stock / max(each) for each, stock in runs],
                **{"tokens a second": median(rates)},
                latency=latency([seconds for each, _ in runs for seconds in each]),
                rates=rates,
            )
            low, high = line["quartiles"]
            print(
                f"{name:28} {line['tokens a second']:6.0f} tokens/s  x {line['ratio']:.3f} ({low:.3f} to {high:.3f})"
                f"  p50 {line['latency']['p50']:.2f} s  p99 {line['latency']['p99']:.2f} s",
                flush=True,
            )
            rows.append(line)
        loaded = [*steered, "--port", str(PORTS["load"]), *common, "--dtype", "float32"]
        start(stack, "load", loaded, scratch / "load.log")
        load = load_test(prompts, options.load)
        print(load)
    record.save("serving", vars(options), {"rows": rows, "load": load}, "vllm")


def table(result: record.Result) -> str:
    """Return a line for each way, and what the load test found."""
    options, load = result.asked, result.made["load"]
    title = f"{options['requests']} requests at once, {TOKENS} tokens each"
    lines = [
        (
            row["way"],
            f"{row['tokens a second']:.0f}",
            f"{markdown.percent(row['ratio'], 1)} ({' to '.join(f'{100 * one:.1f}' for one in row['quartiles'])})",
            f"{row['latency']['p50']:.2f} s",
            f"{row['latency']['p99']:.2f} s",
        )
        for row in result.made["rows"]
    ]
    return (
        markdown.table((title, "tokens/s", "of stock (quartiles)", "p50", "p99"), lines)
        + f"\n\nEach way is timed between two batches to stock vLLM, {options['rounds']} rounds, {options['dtype']}; "
        f"stock's own row is the noise. Then {load['requests']} requests at once of {load['different requests']} ways "
        f"to be steered: {load['answered']} answered, {load['not as alone']} other than the answer that the same "
        f"request gets alone (greedy, float32), p50 {load['latency']['p50']:.1f} s, p99 {load['latency']['p99']:.1f} s."
    )


if __name__ == "__main__":
    main()
