"""What a steered generate costs over an untouched one: 64 prompts, 32 tokens each, SmolLM2-135M-Instruct.

    python -m benchmarks.speed.steering [--rounds 15] [--batch 64]

In one process, round after round; every row writes exactly 32 tokens. Each way is timed between two untouched
generations, and its ratio is the median over rounds of its time by the mean of these two: what drifts slowly on a
machine drops out. "untouched" is timed in the same way, so its ratio is the noise. Writes
benchmarks/results/steering.json.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch

import lineas
from benchmarks.common.record import about, row, save
from lineas.learning import gate
from lineas.prompts import read_prompts

TOKENS = 32


def some_intervention(model: lineas.TextModel, seed: int) -> lineas.Intervention:
    """A dense map at every default site, close to the identity."""
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for site in model.sites():
        noise = torch.randn(2, model.network.config.hidden_size, generator=generator)
        maps[site.name] = lineas.AffineMap(1 + 0.01 * noise[0], 0.001 * noise[1])
    return lineas.Intervention(maps, {site.name: site for site in model.sites()})


def main() -> None:
    """Time every way, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    model = lineas.load()
    network: Any = model.network
    prompts = [f"{prompt}" for prompt in (read_prompts("lineas:polite/prompts") * 8)[: options.batch]]
    model.tokenizer.padding_side = "left"
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    dense = [some_intervention(model, seed) for seed in range(4)]
    gated = gate(model, dense[0], read_prompts("lineas:polite/source"), read_prompts("lineas:neutral"))
    ways: dict[str, Any] = {
        "untouched": nullcontext,
        "dense, one": lambda: lineas.steer(model, dense[0], 0.5),
        "dense, four": lambda: lineas.steer(model, dense, 0.5),
        "sparse (polite)": lambda: lineas.steer(model, lineas.Intervention.load("polite"), 1.0),
        "strength 0": lambda: lineas.steer(model, dense[0], 0.0),
        "gated": lambda: lineas.steer(model, gated, 0.5),
        "a strength a row": lambda: lineas.steer(model, dense[0], torch.linspace(0, 1, len(prompts))),
    }

    def seconds(way: Any) -> float:
        with way(), torch.no_grad():
            torch.manual_seed(0)
            start = time.perf_counter()
            network.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, top_p=0.3, top_k=0,
                repetition_penalty=1.2, pad_token_id=0,
            )  # fmt: skip
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        seconds(way)  # warms up
    before = seconds(nullcontext)
    for _ in range(options.rounds):
        for name, way in ways.items():
            taken, after = seconds(way), seconds(nullcontext)
            times[name].append(taken)
            ratios[name].append(2 * taken / (before + after))
            before = after
    rows = [row(name, ratios[name], seconds=median(times[name]), all=times[name]) for name in ways]
    for told in rows:
        low, high = told["quartiles"]
        print(f"{told['way']:20} {told['seconds']:6.2f} s   x {told['ratio']:.3f}  (quartiles {low:.3f} to {high:.3f})")
    save(
        "steering", {"about": about(), "options": vars(options), "prompts": list(inputs.input_ids.shape), "rows": rows}
    )


if __name__ == "__main__":
    main()
