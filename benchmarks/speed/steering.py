"""The cost of a steered generate over an untouched one: 64 prompts, 32 tokens each, SmolLM2-135M-Instruct.

    python -m benchmarks.speed.steering [--rounds 15] [--batch 64]

In one process, round after round; every row writes exactly 32 tokens. Each way is timed between two untouched
generations, and its ratio is the median over rounds of its time by the mean of these two: what drifts slowly on a
machine drops out. "untouched" is timed in the same way, so its ratio is the noise. Writes
benchmarks/results/steering.json.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import lineas
from benchmarks.common import record
from benchmarks.common.splits import take
from benchmarks.speed.rounds import interleaved, row

TOKENS = 32


def main() -> None:
    """Time every way, print and record."""
    import torch

    from lineas.learning import gate

    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    model = record.text_model()
    network: Any = model.network
    prompts = (take("steering", "judging", "lineas:polite/prompts") * 8)[: options.batch]
    model.tokenizer.padding_side = "left"
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    dense = [some_intervention(model, seed) for seed in range(4)]
    source, control = (take("steering", "learning", f"lineas:{name}") for name in ("polite/source", "neutral"))
    gated = gate(model, dense[0], source, control)
    steer = partial(lineas.steer, model)

    def seconds(applied: AbstractContextManager[Any]) -> float:
        with applied, torch.no_grad():
            torch.manual_seed(0)
            start = time.perf_counter()
            network.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, top_p=0.3, top_k=0,
                repetition_penalty=1.2, pad_token_id=0,
            )  # fmt: skip
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

    ways = {
        "untouched": lambda: seconds(nullcontext()),
        "dense, one": lambda: seconds(steer(dense[0], 0.5)),
        "dense, four": lambda: seconds(steer(dense, 0.5)),
        "sparse (polite)": lambda: seconds(steer(lineas.Intervention.load("polite"), 1.0)),
        "strength 0": lambda: seconds(steer(dense[0], 0.0)),
        "gated": lambda: seconds(steer(gated, 0.5)),
        "a strength a row": lambda: seconds(steer(dense[0], torch.linspace(0, 1, len(prompts)))),
    }
    rows = []
    for name, runs in interleaved(ways, ways["untouched"], options.rounds).items():
        taken = [run for run, _ in runs]
        line = row(name, [run / untouched for run, untouched in runs], seconds=median(taken), all=taken)
        low, high = line["quartiles"]
        print(f"{name:20} {line['seconds']:6.2f} s   x {line['ratio']:.3f}  (quartiles {low:.3f} to {high:.3f})")
        rows.append(line)
    record.save("steering", vars(options), {"prompts": list(inputs.input_ids.shape), "rows": rows})


def some_intervention(model: lineas.TextModel, seed: int) -> lineas.Intervention:
    """Return a dense map at every default site, close to the identity."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    network: Any = model.network
    maps = {}
    for site in model.sites():
        noise = torch.randn(2, network.config.hidden_size, generator=generator)
        maps[site.name] = lineas.AffineMap(1 + 0.01 * noise[0], 0.001 * noise[1])
    return lineas.Intervention(maps, {site.name: site for site in model.sites()})


def table(result: record.Result) -> str:
    """Return a sentence: what each way takes beyond an untouched generation."""
    costs = [f"{row['way']} {100 * (row['ratio'] - 1):+.1f} %" for row in result.made["rows"]]
    count = result.made["prompts"][0]
    return f"A steered `generate` by an untouched one, {count} prompts, {TOKENS} tokens: {', '.join(costs)}."


if __name__ == "__main__":
    main()
