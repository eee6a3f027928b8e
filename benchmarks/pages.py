"""Write the figures of README.md and docs from benchmarks/results: what stands between `<!-- NAME -->` and
`<!-- /NAME -->`.

    python -m benchmarks.pages [--check]

With --check nothing is written, and the exit code is 1 where a page and the results differ.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module

from benchmarks.common import record
from benchmarks.common.splits import SHARED

TABLES = {
    "demo": "showcase.demo",
    "detoxification": "comparison.detoxification",
    "shipped": "showcase.shipped",
    "sparse": "sparsity.sparsity:sentence",
    "learning": "speed.learning",
    "steering": "speed.steering",
    "sparsity": "sparsity.sparsity",
    "composition": "sparsity.composition",
    "gates": "sparsity.gates",
    "recipes": "comparison.recipes",
    "serving": "speed.serving",
    "demo_images": "images.demo_images",
    "images": "images.images",
    "toxicity": "comparison.toxicity",
    "archaic": "comparison.archaic",
}
"""By the marker on a page, the benchmark whose `table`, or which other function, writes what stands there."""


def main() -> None:
    """Fill the marked places, or compare them."""
    pages = {file: file.read_text(encoding="utf-8") for file in (record.ROOT / "README.md", *record.DOCS.rglob("*.md"))}
    filled = dict(pages)
    for name, place in TABLES.items():
        marked = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", flags=re.DOTALL)
        counts = {file: len(marked.findall(text)) for file, text in filled.items()}
        if sum(counts.values()) != 1:
            sys.exit(f"README.md and docs have {sum(counts.values())} places for {name}, expected 1.")
        file = max(counts, key=lambda file: counts[file])
        before, after = marked.split(filled[file])
        filled[file] = f"{before}<!-- {name} -->\n{written(place)}\n<!-- /{name} -->{after}"
    for file, text in filled.items():
        if text != pages[file] and "--check" in sys.argv:
            sys.exit(f"{file.name} does not show the committed results; run python -m benchmarks.pages.")
        if text != pages[file]:
            file.write_text(text, encoding="utf-8")


def written(place: str) -> str:
    """Return what a benchmark says of its results, who made them, and which of its prompts serve for two purposes."""
    module, _, function = place.partition(":")
    write = getattr(import_module(f"benchmarks.{module}"), function or "table")
    benchmark = module.rpartition(".")[-1]
    results = record.named(benchmark.replace("_", "-"))
    if not results:
        sys.exit(f"there is no result of {benchmark} in benchmarks/results; run python -m benchmarks.{module}.")
    blocks = []
    for name, result in results:
        blocks.append(write(result))
        if benchmark in SHARED and name == results[-1][0]:
            blocks.append(SHARED[benchmark].sentence.format(*SHARED[benchmark].rows.values()))
        origin = record.provenance(record.parts_of(name) or [result])
        if not result.about:
            origin += f"; each row is a file in `benchmarks/results/{name}` that says which"
        blocks.append(f"<sub>`python -m benchmarks.{module}` {origin}.</sub>")
    return "\n\n".join(blocks)


if __name__ == "__main__":
    main()
