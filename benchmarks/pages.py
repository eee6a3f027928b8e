"""Write the figures of README.md and docs from benchmarks/results: what stands between `<!-- NAME -->` and
`<!-- /NAME -->`.

    python -m benchmarks.pages [--check]

With --check nothing is written, and the exit code is 1 where a page and the results differ.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks import tables
from benchmarks.common import standings

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": {
        "demo": tables.demo,
        "detoxification": tables.detoxification,
        "shipped": tables.shipped,
        "sparse": tables.sparse,
        "learning": tables.learning,
    },
    "docs/sparsity.md": {"sparsity": tables.sparsity, "composition": tables.composition, "gates": tables.gates},
    "docs/recipes.md": {"recipes": tables.recipes},
    "docs/serving.md": {"serving": tables.serving},
    "docs/images.md": {"demo_images": tables.demo_images, "images": tables.images},
    "docs/comparison.md": {
        "toxicity": lambda: standings.table("toxicity", "toxic"),
        "archaic": lambda: standings.table("archaic", "concept"),
    },
}


def main() -> None:
    """Fill the marked places, or compare them."""
    for page, blocks in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        filled = text
        for name, write in blocks.items():
            block = f"<!-- {name} -->\n{write()}\n<!-- /{name} -->"
            pattern = f"<!-- {name} -->.*?<!-- /{name} -->"
            filled, count = re.subn(pattern, lambda _, b=block: b, filled, flags=re.DOTALL)
            if count != 1:
                sys.exit(f"{page} has {count} places for {name}, expected 1.")
        if filled != text and "--check" in sys.argv:
            sys.exit(f"{page} does not show the committed results; run benchmarks/readme.py.")
        (ROOT / page).write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
