"""Many forward passes at once on one network, in threads and tasks, each compared bit for bit with the same pass alone.

    python tests/stress.py [--passes 10000] [--seed 0]

Threads steer by interventions of their own at strengths of their own, nested and crossed, or not at all; tasks of an
event loop do the same and give way between entering and running; one thread changes a strength that others run with;
others continue texts. Prints how many passes of each kind there were.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import families
import torch

import lineas
from lineas import AffineMap, Intervention

STRENGTHS = (0.3, 1.0)
IDS = torch.tensor([[5, 17, 40, 81, 22], [9, 3, 77, 50, 61]])


def intervention(network: Any, seed: int) -> Intervention:
    """A map far from the identity at every default site."""
    generator = torch.Generator().manual_seed(seed)
    noise = {site.name: torch.randn(2, 32, generator=generator) for site in lineas.sites.find_sites(network)}
    return Intervention({name: AffineMap(1 + 0.3 * a, 0.3 * b) for name, (a, b) in noise.items()})


class Stress:
    """One network, what is known of it alone, and workers that run it side by side."""

    def __init__(self, passes: int, seed: int = 0) -> None:
        self.network: Any = families.network("llama")
        self.maps = {name: intervention(self.network, i) for i, name in enumerate("AB")}
        self.passes, self.seed = passes, seed
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lock = threading.Lock()
        self.alone = cache(self._alone)
        for key in ("", "A0.3", "A1.0", "B0.3", "B1.0", *(f"A{a}B{b}" for a in STRENGTHS for b in STRENGTHS), "rows"):
            self.alone(key)

    def _alone(self, key: str) -> Any:
        """Return what a pass gives when nothing else runs: such as "A0.3B1.0" for A at 0.3, then B at 1."""
        if key == "rows":
            with lineas.steer(self.network, self.maps["A"], torch.tensor([0.0, 0.6])):
                return self.run()
        if key in ("generated", "answer"):
            with lineas.steer(self.network, self.maps["B"], 0.4, tokens=key):
                return self.text()
        lives = [
            lineas.steer(self.network, self.maps[key[i]], float(key[i + 1 : i + 4])) for i in range(0, len(key), 4)
        ]
        found = self.run()
        for live in lives:
            live.detach()
        return found

    def run(self) -> torch.Tensor:
        """One forward pass."""
        with torch.no_grad():
            return self.network(input_ids=IDS, use_cache=False).logits

    def text(self) -> torch.Tensor:
        """Three tokens more, four passes' worth of ways to go wrong."""
        return self.network.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)

    def check(self, kind: str, found: torch.Tensor, *keys: str) -> None:
        """Count a pass; it has to be one of these alone, to the bit."""
        right = any(torch.equal(found, self.alone(key)) for key in keys)
        with self.lock:
            self.counts[kind] += 1
            if not right:
                self.wrong.append(f"{kind}: not {' or '.join(keys)}")

    def go_on(self) -> bool:
        """Return True until there were enough passes."""
        return sum(self.counts.values()) < self.passes and not self.wrong

    # ---- workers

    def untouched(self, chance: random.Random) -> None:
        self.check("untouched", self.run(), "")

    def nested(self, chance: random.Random) -> None:
        a, b = chance.choice(STRENGTHS), chance.choice(STRENGTHS)
        with lineas.steer(self.network, self.maps["A"], a):
            self.check("nested", self.run(), f"A{a}")
            with lineas.steer(self.network, self.maps["B"], b) as inner:
                self.check("nested", self.run(), f"A{a}B{b}")
                inner.strength = 0.0
                self.check("nested", self.run(), f"A{a}")
            self.check("nested", self.run(), f"A{a}")
        self.check("nested", self.run(), "")

    def crossed(self, chance: random.Random) -> None:
        a, b = chance.choice(STRENGTHS), chance.choice(STRENGTHS)
        first = lineas.steer(self.network, self.maps["A"], a)
        second = lineas.steer(self.network, self.maps["B"], b)
        self.check("crossed", self.run(), f"A{a}B{b}")
        first.detach()
        self.check("crossed", self.run(), f"B{b}")
        second.detach()
        self.check("crossed", self.run(), "")

    def by_row(self, chance: random.Random) -> None:
        with lineas.steer(self.network, self.maps["A"], torch.tensor([0.0, 0.6])):
            self.check("a strength a row", self.run(), "rows")

    def continued(self, chance: random.Random) -> None:
        tokens: Any = chance.choice(("generated", "answer"))
        with lineas.steer(self.network, self.maps["B"], 0.4, tokens=tokens):
            self.check("texts", self.text(), tokens)

    def tasks(self, chance: random.Random) -> None:
        async def one(name: str, strength: float) -> None:
            with lineas.steer(self.network, self.maps[name], strength):
                for _ in range(3):
                    await asyncio.sleep(0)
                    self.check("tasks", self.run(), f"{name}{strength}")
                await asyncio.to_thread(lambda: self.check("tasks", self.run(), f"{name}{strength}"))
            await asyncio.sleep(0)
            self.check("tasks", self.run(), "")

        async def none() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                self.check("tasks", self.run(), "")

        async def everything() -> None:
            await asyncio.gather(one("A", 0.3), none(), one("B", 1.0), one("A", chance.choice(STRENGTHS)), none())

        asyncio.run(everything())

    def changing(self, chance: random.Random) -> None:
        """Another thread sets the strength while this one runs: every pass has one of those that there were."""
        live = lineas.steer(self.network, self.maps["A"], 0.3)
        ended = threading.Event()

        def change() -> None:
            while not ended.is_set():
                for strength in (1.0, 0.0, 0.3):
                    live.strength = strength

        def passes(run: Callable[..., torch.Tensor]) -> None:
            for _ in range(5):
                self.check("changing strength", run(), "", "A0.3", "A1.0")

        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=change),
            threading.Thread(target=passes, args=(lambda: live.run(self.run),)),
            threading.Thread(target=context.run, args=(passes, self.run)),
        ]
        for thread in threads:
            thread.start()
        passes(self.run)
        for thread in threads[1:]:
            thread.join()
        ended.set()
        threads[0].join()
        live.detach()
        self.check("changing strength", self.run(), "")

    def work(self) -> Counter[str]:
        """Run all workers until there were enough passes; how many of each kind, or what was wrong."""
        for tokens in ("generated", "answer"):
            self.alone(tokens)
        kinds = [self.untouched, self.nested, self.crossed, self.by_row, self.continued, self.tasks, self.changing]

        def repeat(kind: Callable[[random.Random], None], seed: int) -> None:
            chance = random.Random(seed)
            try:
                while self.go_on():
                    kind(chance)
            except Exception as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                raise

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # give way often
        try:
            threads = [threading.Thread(target=repeat, args=(k, 100 * self.seed + i)) for i, k in enumerate(kinds)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
        return self.counts


def main() -> None:
    """Run, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stress = Stress(options.passes, options.seed)
    counts = stress.work()
    for kind, count in sorted(counts.items()):
        print(f"{kind:20} {count:6}")
    print(f"{sum(counts.values())} passes, {len(stress.wrong)} other than alone")
    for line in stress.wrong[:10]:
        print(line)
    sys.exit(bool(stress.wrong))


if __name__ == "__main__":
    main()
