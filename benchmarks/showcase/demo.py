"""The output and the plot of `lineas demo`, recorded: benchmarks/results/demo.txt, demo.json and docs/demo.png.

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

from benchmarks.common import record


def main() -> None:
    """Run the demo as a user does, in a terminal 100 columns wide, and keep what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        printed, figures = run_demo(Path(folder))
        print(printed)
        figures.pop("continuations")
        (record.RESULTS / "demo.txt").write_text("\n".join(line.rstrip() for line in printed.splitlines()) + "\n")
        record.save("demo", {}, figures)
        shutil.copyfile(Path(folder) / "demo-output" / "polite.png", record.DOCS / "demo.png")


def run_demo(folder: Path, *options: str) -> tuple[str, dict]:
    """Return what `lineas demo` prints, and its figures; what it draws lies in `demo-output` of a folder."""
    printed = subprocess.run(
        [sys.executable, "-m", "lineas", "demo", *options, "--out", "demo-output", "--json", "demo.json"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return printed, json.loads((folder / "demo.json").read_text())


def table(result: record.Result) -> str:
    """Return the demo's output as it was printed."""
    return f"```text\n{(record.RESULTS / 'demo.txt').read_text().strip()}\n```"


if __name__ == "__main__":
    main()
