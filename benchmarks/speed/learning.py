"""Seconds, tokens and bytes of a learning step on SmolLM2-135M-Instruct, beside a loop in the reference's style.

    python -m benchmarks.speed.learning [--rounds 3] [--quick]

One process, one way after the other, round after round (32 + 32 Jigsaw sentences):
- reference style: float32, gradients on all weights, prompts padded to the longest, logits computed;
- lineas in float32, and in its default type;
- lineas in its default type with the norms, or the MLPs, given to torch.compile (in the first round, not timed);
- lineas with maps in the upper two thirds of the blocks alone, and the same without the hidden states that it keeps.
Then seconds to a finished intervention by each recipe, the whole of `lineas.learn`: the median of the rounds, or one
run of the published recipe. Then, in the default type: growth with the number of sentences n (ParaDetox), with the
length of 32 prompts (Wikipedia sentences end to end), and with depth (sites in the first k blocks). A step's time is
the median over steps.
"share" is the rate of useful matrix products (2 per weight and token forward, 2 backward; nothing for attention, nor
for what is computed twice) by the best rate of plain matrix products of the same type on this machine, measured beside
each timing (the median of these shares where there are several rounds). Memory is the
peak above what was taken before the first step, read from the system. Writes benchmarks/results/learning.json.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.methods import relative
from benchmarks.common.splits import UPPER_NORMS, both, jigsaw, take

if TYPE_CHECKING:
    import torch

MEMORY = "3GiB"
UPPER_WAYS = ("upper two thirds of the blocks", "the same, no states kept")
GROWTH = {"n": "n", "length": "t", "depth": "k"}
Timing = tuple[list[float], int]
"""Seconds of each step, and the peak memory in bytes."""


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations a second of plain matrix products: of the best of some shapes, the median over 30."""
    import torch

    best = 0.0
    for m, k, n in ((1024, 576, 1536), (1024, 1536, 576), (4096, 576, 1536), (1024, 576, 576), (2048, 2048, 2048)):
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
        rates = []
        for _ in range(30):
            start = time.perf_counter()
            torch.matmul(a, b.T)
            synchronize(device)
            rates.append(2 * m * k * n / (time.perf_counter() - start))
        best = max(best, median(rates))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


class Peak:
    """The peak of a block's memory above what was taken when it began, in bytes."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.cuda = torch.cuda if device.type == "cuda" else None

    def __enter__(self) -> Peak:
        gc.collect()
        if self.cuda:
            self.cuda.empty_cache()
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated()
        else:
            with suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free does not count as taken
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = self.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        self.bytes = peak - self.before


def _status(field: str) -> int:
    """Return what the system says of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def operations(model: lineas.TextModel, sentences: list[str], pattern: str | None, max_length: int) -> tuple[int, int]:
    """Return the useful multiplications and additions of a step, and its tokens."""
    import torch

    from lineas.learning.capture import capture

    batch, sites = model.batch(sentences, max_length), model.sites(pattern)
    counted: dict[str, int] = {}
    linears = [(n, m) for n, m in model.network.named_modules() if isinstance(m, torch.nn.Linear)]

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
) -> Timing:
    """Time each step through `lineas.learn`, the first left out."""
    marks = [0.0]

    def mark(*_: object) -> None:
        synchronize(model.device)
        marks.append(time.perf_counter())

    with Peak(model.device) as peak:
        recipe = relative(steps=steps + 1)
        lineas.learn(model, source, target, recipe, sites=pattern, max_length=max_length, memory=MEMORY, progress=mark)
    return [b - a for a, b in pairwise(marks[1:])], peak.bytes


def reference(model: lineas.TextModel, source: list[str], target: list[str], steps: int) -> Timing:
    """Time the same steps in the style of the reference implementation."""
    import torch
    from torch import nn

    from lineas.learning import transport

    network: Any = model.network
    sites = model.sites()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    width = network.config.hidden_size
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


def without_states(model: lineas.TextModel, source: list[str], target: list[str], steps: int) -> Timing:
    """Time each step with maps in the upper two thirds, running all blocks each time."""
    from unittest import mock

    with mock.patch("lineas.learning.memory.STATES", 0.0):
        return ours(model, source, target, UPPER_NORMS, steps)


RECIPES: dict[str, tuple[Callable[[], Any], str | None]] = {
    "LinEAS()": (lambda: lineas.LinEAS(), None),
    "relative, upper two thirds": (lambda: relative(), UPPER_NORMS),
    "relative, all blocks": (lambda: relative(), None),
    "Mean-AcT": (lambda: lineas.MeanAcT(), None),
    "Lin-AcT": (lambda: lineas.LinAcT(), None),
    "LinEAS.paper()": (lambda: lineas.LinEAS.paper(), None),
}
"""Recipes whose time to a finished intervention is measured, and their sites (None: their own)."""


def finished(model: lineas.TextModel, source: list[str], target: list[str], rounds: int) -> list[dict[str, Any]]:
    """Time the whole of learning by each recipe, alternating; the published one once, since it takes minutes."""
    taken: dict[str, list[float]] = {name: [] for name in RECIPES}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for name, (make, sites) in RECIPES.items():
            if turn and name == "LinEAS.paper()":
                continue
            start = time.perf_counter()
            learned = lineas.learn(model, source, target, make(), sites=sites, progress=False)
            synchronize(model.device)
            taken[name].append(time.perf_counter() - start)
            facts[name] = {"steps": learned.facts["steps_done"], "sites": len(learned.maps)}
            print(f"{name}: {taken[name][-1]:.1f} s", flush=True)
    return [{"name": name, "seconds": median(one), "all": one, **facts[name]} for name, one in taken.items()]


def compiled(kind: str) -> lineas.TextModel:
    """Return the default model with some modules' computation compiled; hooks stay outside of it."""
    import torch

    model = record.text_model()
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


def timed(model: lineas.TextModel, way: Callable[[], Timing]) -> Timed:
    """Time plain matrix products, then a way."""
    rate = matmul_rate(model.dtype, model.device)
    return Timed(*way(), rate)


def row(name: str, runs: list[Timed], work: tuple[int, int], **facts: int) -> dict[str, Any]:
    """Return, and print, what one way took.

    Args:
        name: of the way.
        runs: its runs.
        work: operations and tokens of a step.
        facts: further numbers.
    """
    seconds, (operations_, tokens) = [step for run in runs for step in run.seconds], work
    line = {
        **facts, "name": name, "seconds": median(seconds), "tokens": tokens,
        "tokens_per_second": tokens / median(seconds),
        "share": median(operations_ / median(run.seconds) / run.rate for run in runs),
        "peak_bytes": max(run.peak for run in runs), "matmul": [run.rate for run in runs], "all": seconds,
    }  # fmt: skip
    print(
        f"{name:24} {line['seconds']:7.2f} s a step  {tokens:6} tokens  {line['tokens_per_second']:7.0f} tokens/s  "
        f"{markdown.percent(line['share']):>5} of the matmul rate  {line['peak_bytes'] / 2**30:5.2f} GiB",
        flush=True,
    )
    return line


def main() -> None:
    """Measure, print and record."""
    from lineas.models.frozen import frozen

    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first table alone")
    options = parser.parse_args()
    default, exact = record.text_model(), record.text_model(dtype="float32")
    norms, mlps = compiled("layernorm"), compiled("mlp")
    for model in (default, exact, norms, mlps):
        model.tokenizer.padding_side = "right"
    source, target = jigsaw("learning", 0)
    ways: dict[str, tuple[lineas.TextModel, Callable[[], Timing]]] = {
        "reference style": (exact, lambda: reference(exact, source, target, 1)),
        "lineas, float32": (exact, lambda: ours(exact, source, target, None, 3)),
        f"lineas, {default.dtype}".replace("torch.", ""): (default, lambda: ours(default, source, target, None, 5)),
        "the same, compiled norms": (norms, lambda: ours(norms, source, target, None, 5)),
        "the same, compiled MLPs": (mlps, lambda: ours(mlps, source, target, None, 5)),
        "upper two thirds of the blocks": (default, lambda: ours(default, source, target, UPPER_NORMS, 5)),
        "the same, no states kept": (default, lambda: without_states(default, source, target, 5)),
    }
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, (model, way) in ways.items():
            with frozen(model.network):
                run = timed(model, way)
            if turn:  # the first round warms up
                runs[name].append(run)
    work = {name: UPPER_NORMS if name in UPPER_WAYS else None for name in ways}
    lines = [row(name, runs[name], operations(model, source, work[name], 128)) for name, (model, _) in ways.items()]
    for line in lines:
        print(f"{line['name']}: {', '.join(f'{rate / 1e9:.0f}' for rate in line['matmul'])} GFLOP/s in matrix products")
    grown = {} if options.quick else growth(default)
    recipes = finished(default, source, target, options.rounds)
    figures = {"device": str(default.device), "memory_limit": MEMORY, "ways": lines, "recipes": recipes, **grown}
    record.save("learning" if default.device.type == "cpu" else "learning-gpu", vars(options), figures)


def growth(model: lineas.TextModel) -> dict[str, list[dict[str, Any]]]:
    """Measure how time and memory grow with the number of sentences, their length, and depth."""

    def grown(name: str, sides: tuple[list[str], ...], pattern: str | None, tokens: int, **size: int) -> dict:
        source, target = sides
        run = timed(model, partial(ours, model, source, target, pattern, 3, tokens))
        return row(name, [run], operations(model, source, pattern, tokens), **size)

    words = " ".join(take("learning", "learning", "wikipedia")).split()
    texts = [" ".join(words[500 * i : 500 * (i + 1)]) for i in range(64)]
    halves = texts[:32], texts[32:]
    drawn = partial(both, "learning", "learning", "paradetox", ("toxic", "neutral"), 0)
    layers = {k: "|".join(rf"model\.layers\.{i}\.post_attention_layernorm" for i in range(k)) for k in (5, 10, 20, 30)}
    return {
        "n": [grown(f"n = {n}", drawn(n), None, 128, n=n) for n in (32, 128, 512, 1024)],
        "length": [grown(f"length {t}", halves, None, t, length=t) for t in (32, 64, 128, 256)],
        "depth": [grown(f"{k} blocks", drawn(32), pattern, 128, depth=k) for k, pattern in layers.items()],
    }


def table(result: record.Result) -> str:
    """Return the table of ways, and that of growth."""
    figures = result.made
    first, ways = figures["ways"][0], []
    for way in figures["ways"]:
        seconds, memory = f"{way['seconds']:.2f}", f"{way['peak_bytes'] / 2**30:.2f} GiB"
        if way is not first:
            seconds += f" ({first['seconds'] / way['seconds']:.1f} times faster)"
            memory += f" ({markdown.percent(way['peak_bytes'] / first['peak_bytes'])})"
        ways.append((way["name"], seconds, f"{way['tokens_per_second']:.0f}", markdown.percent(way["share"]), memory))
    whole = [
        (one["name"], f"{one['seconds']:.1f}", str(one["steps"]), str(one["sites"]))
        for one in figures.get("recipes", ())
    ]
    titles = ("a learning step, 32 + 32 sentences", "seconds", "tokens/s", "of the matmul rate")
    grown = [(f"{letter} = {row[key]}", row) for key, letter in GROWTH.items() for row in figures[key]]
    growing = [
        ("seconds a step", *(f"{row['seconds']:.2f}" for _, row in grown)),
        ("ms a token", *(f"{1000 * row['seconds'] / row['tokens']:.2f}" for _, row in grown)),
        ("GiB", *(f"{row['peak_bytes'] / 2**30:.2f}" for _, row in grown)),
    ]
    tables = [markdown.table((*titles, "memory beside the weights"), ways)]
    if whole:
        tables.append(markdown.table(("a finished intervention", "seconds", "steps", "sites"), whole))
    tables.append(markdown.table(("growth, default type", *(title for title, _ in grown)), growing))
    return (
        "\n\n".join(tables)
        + "\n\nGrowth with n (sentences), t (tokens of 32 prompts) and k (blocks with maps), memory "
        f"limited to {figures['memory_limit']}: past it the batch runs twice, in parts."
    )


if __name__ == "__main__":
    main()
