"""Seconds, tokens and bytes of a learning step on SmolLM2-135M-Instruct, beside a loop in the reference's style.

    python -m benchmarks.speed.learning [--rounds 3] [--quick]

One process, one way after the other, round after round (32 + 32 Jigsaw sentences):
- reference style: float32, gradients on all weights, prompts padded to the longest, logits computed;
- lineas in float32, and in its default type;
- lineas in its default type with the norms, or the MLPs, given to torch.compile (in the first round, not timed).
Then, in the default type: growth with the number of sentences n (ParaDetox), with the length of 32 prompts (Wikipedia
sentences end to end), and with depth (sites in the first k blocks). A step's time is the median over steps.
"share" is the rate of useful matrix products (2 per weight and token forward, 2 backward; nothing for attention, nor
for what is computed twice) by the best rate of plain matrix products of the same type on this machine, measured beside
each timing (the median of these shares where there are several rounds). Memory is the
peak above what was taken before the first step, read from the system. Writes benchmarks/results/learning.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import lineas
from benchmarks.common.record import DATA, about, save
from lineas.learning import transport
from lineas.learning.capture import capture
from lineas.models.frozen import frozen
from lineas.prompts import draw, read_prompts

MEMORY = "3GiB"


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of plain matrix products, in the best of some shapes; the median over 30 of each."""
    best = 0.0
    for m, k, n in ((1024, 576, 1536), (1024, 1536, 576), (4096, 576, 1536), (1024, 576, 576), (2048, 2048, 2048)):
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
        rates = []
        for _ in range(30):
            start = time.perf_counter()
            a @ b.T
            synchronize(device)
            rates.append(2 * m * k * n / (time.perf_counter() - start))
        best = max(best, median(rates))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Peak:
    """The peak of a block's memory above what was taken when it began, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def _read(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def __enter__(self) -> Peak:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            trim()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.cuda else self._read("VmHWM")
        self.bytes = peak - self.before


def trim() -> None:
    """Give what is free back to the system, so that it does not count as taken."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def operations(model: lineas.TextModel, sentences: list[str], pattern: str | None, max_length: int) -> tuple[int, int]:
    """Useful multiplications and additions of a step, and its tokens."""
    batch, sites = model.batch(sentences, max_length), model.sites(pattern)
    counted: dict[str, int] = {}
    linears = [(n, m) for n, m in model.network.named_modules() if isinstance(m, nn.Linear)]

    def count(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, result: torch.Tensor) -> None:
            counted[name] = counted.get(name, 0) + 2 * module.weight.numel() * result.numel() // result.shape[-1]

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in linears]
    order = [name for name, _ in model.network.named_modules()]
    with torch.no_grad():
        capture(model, batch, sites)
    for handle in handles:
        handle.remove()
    after = {name for name in counted if order.index(name) > order.index(sites[0].module)}  # those with a backward
    return sum(c * (2 if name in after else 1) for name, c in counted.items()), sum(part.size for part in batch.parts)


def ours(
    model: lineas.TextModel,
    source: list[str],
    target: list[str],
    pattern: str | None,
    steps: int,
    max_length: int = 128,
) -> tuple[list[float], int]:
    """Seconds of each step through `lineas.learn`, the first left out, and the peak memory."""
    marks = [0.0]

    def mark(*_: object) -> None:
        synchronize(model.device)
        marks.append(time.perf_counter())

    with Peak(model.device) as peak:
        recipe = lineas.LinEAS(steps=steps + 1)
        lineas.learn(model, source, target, recipe, sites=pattern, max_length=max_length, memory=MEMORY, progress=mark)
    return [b - a for a, b in pairwise(marks[1:])], peak.bytes


def reference(model: lineas.TextModel, source: list[str], target: list[str], steps: int) -> tuple[list[float], int]:
    """The same steps in the style of the reference implementation."""
    network, sites = model.network, model.sites()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    width = network.config.hidden_size  # type: ignore[union-attr]
    scales = [nn.Parameter(torch.ones(width, device=model.device)) for _ in sites]
    shifts = [nn.Parameter(torch.zeros(width, device=model.device)) for _ in sites]

    def run(sentences: list[str], edit: bool) -> list[torch.Tensor]:
        encoded = model.tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=128).to(
            model.device
        )
        seen: list[torch.Tensor] = []
        weights = encoded.attention_mask.float()
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)

        def hook(index: int) -> Callable[..., Any]:
            def inner(module: Any, args: Any, z: torch.Tensor) -> torch.Tensor:
                z = z * scales[index] + shifts[index] if edit else z
                seen.append((z * weights).sum(1))
                return z

            return inner

        handles = [network.get_submodule(s.module).register_forward_hook(hook(i)) for i, s in enumerate(sites)]
        network(**encoded)
        for handle in handles:
            handle.remove()
        return seen

    optimizer = torch.optim.SGD([*scales, *shifts], lr=1e-3)
    taken = []
    with Peak(model.device) as peak:
        with torch.no_grad():
            targets = [v.sort(dim=0).values for v in run(target, edit=False)]
        for _ in range(steps):
            synchronize(model.device)
            start = time.perf_counter()
            optimizer.zero_grad()
            cost = torch.stack([transport.cost(u, v) for u, v in zip(run(source, edit=True), targets)]).mean()
            cost.backward()
            optimizer.step()
            synchronize(model.device)
            taken.append(time.perf_counter() - start)
        network.zero_grad()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return taken, peak.bytes


def compiled(kind: str) -> lineas.TextModel:
    """The default model with some modules' computation compiled; hooks stay outside of it."""
    model = lineas.load()
    for name, module in model.network.named_modules():
        if name.endswith(kind):
            module.forward = torch.compile(module.forward)
    return model


@dataclass
class Timed:
    """One run of a way: seconds of its steps, peak memory in bytes, and the matmul rate just before it."""

    seconds: list[float]
    peak: int
    rate: float


def timed(model: lineas.TextModel, way: Callable[[], tuple[list[float], int]]) -> Timed:
    """Measure the machine, then a way."""
    rate = matmul_rate(model.dtype, model.device)
    return Timed(*way(), rate)


def row(name: str, runs: list[Timed], work: tuple[int, int]) -> dict[str, Any]:
    """What is printed and kept of one way."""
    seconds, peak = [t for run in runs for t in run.seconds], max(run.peak for run in runs)
    step = median(seconds)
    made = {
        "name": name, "seconds": step, "tokens": work[1], "tokens_per_second": work[1] / step,
        "share": median(work[0] / median(run.seconds) / run.rate for run in runs), "peak_bytes": peak,
        "matmul": [run.rate for run in runs], "all": seconds,
    }  # fmt: skip
    print(
        f"{name:24} {step:7.2f} s a step  {made['tokens']:6} tokens  {made['tokens_per_second']:7.0f} tokens/s  "
        f"{100 * made['share']:4.0f} % of the matmul rate  {peak / 2**30:5.2f} GiB",
        flush=True,
    )
    return made


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first table alone")
    options = parser.parse_args()
    default, exact = lineas.load(), lineas.load(dtype="float32")
    norms, mlps = compiled("layernorm"), compiled("mlp")
    for model in (default, exact, norms, mlps):
        model.tokenizer.padding_side = "right"
    source, target = (draw(read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text"), 32, 0) for side in ("toxic", "nontoxic"))
    ways: dict[str, tuple[lineas.TextModel, Callable[[], tuple[list[float], int]]]] = {
        "reference style": (exact, lambda: reference(exact, source, target, 1)),
        "lineas, float32": (exact, lambda: ours(exact, source, target, None, 3)),
        f"lineas, {default.dtype}".replace("torch.", ""): (default, lambda: ours(default, source, target, None, 5)),
        "the same, compiled norms": (norms, lambda: ours(norms, source, target, None, 5)),
        "the same, compiled MLPs": (mlps, lambda: ours(mlps, source, target, None, 5)),
    }
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, (model, way) in ways.items():
            with frozen(model.network):
                measured = timed(model, way)
            if turn:  # the first round warms up
                found[name].append(measured)
    result: dict[str, Any] = {
        "about": about(), "options": vars(options), "device": str(default.device), "memory_limit": MEMORY,
    }  # fmt: skip
    result["ways"] = [row(name, found[name], operations(model, source, None, 128)) for name, (model, _) in ways.items()]
    for way in result["ways"]:
        print(f"{way['name']}: {', '.join(f'{rate / 1e9:.0f}' for rate in way['matmul'])} GFLOP/s in matrix products")
    if not options.quick:
        result |= growth(default)
    save("learning" if default.device.type == "cpu" else "learning-gpu", result)


def growth(model: lineas.TextModel) -> dict[str, Any]:
    """How time and memory grow."""
    made: dict[str, Any] = {"n": [], "length": [], "depth": []}
    toxic, neutral = (read_prompts(f"{DATA}/paradetox/pairs.jsonl:{side}") for side in ("toxic", "neutral"))
    for n in (32, 128, 512, 1024):
        sides = draw(toxic, n, 0), draw(neutral, n, 0)
        run = timed(model, partial(ours, model, *sides, None, 3))
        made["n"].append({"n": n, **row(f"n = {n}", [run], operations(model, sides[0], None, 128))})
    long = " ".join(draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), 1500, 0)).split()
    texts = [" ".join(long[500 * i : 500 * (i + 1)]) for i in range(64)]
    for length in (32, 64, 128, 256):
        run = timed(model, partial(ours, model, texts[:32], texts[32:], None, 3, length))
        made["length"].append(
            {"length": length, **row(f"length {length}", [run], operations(model, texts[:32], None, length))}
        )
    sides = draw(toxic, 32, 0), draw(neutral, 32, 0)
    for depth in (5, 10, 20, 30):
        pattern = "|".join(rf"model\.layers\.{i}\.post_attention_layernorm" for i in range(depth))
        run = timed(model, partial(ours, model, *sides, pattern, 3))
        made["depth"].append(
            {"depth": depth, **row(f"{depth} blocks", [run], operations(model, sides[0], pattern, 128))}
        )
    return made


if __name__ == "__main__":
    main()
