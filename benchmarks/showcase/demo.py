"""What `lineas demo` prints and draws, recorded: benchmarks/results/demo.txt, demo.json and docs/demo.png.

python -m benchmarks.showcase.demo
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.record import RESULTS, about, save

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the demo as a user does, in a terminal 100 columns wide, and keep what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo-output"
        ran = subprocess.run(
            [sys.executable, "-m", "lineas", "demo", "--out", "demo-output", "--json", "demo.json"],
            cwd=folder,
            env={**os.environ, "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(ran.stdout)
        told = json.loads((Path(folder) / "demo.json").read_text())
        told.pop("continuations")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "demo.txt").write_text("\n".join(line.rstrip() for line in ran.stdout.splitlines()) + "\n")
        save("demo", {"about": about(), **told})
        (ROOT / "docs").mkdir(exist_ok=True)
        shutil.copyfile(out / "polite.png", ROOT / "docs" / "demo.png")


if __name__ == "__main__":
    main()
