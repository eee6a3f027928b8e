"""What `lineas demo --images` prints and draws, recorded: benchmarks/results/demo-images.json and docs/images.

python benchmarks/demo_images.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from record import about, save

PICTURES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Run the demo as a user does, and keep its figures and strips."""
    made_by = about()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lineas", "demo", "--images", "--out", "shown", "--json", "told.json"]
        subprocess.run(command, cwd=folder, check=True)
        told = json.loads((Path(folder) / "told.json").read_text())
        PICTURES.mkdir(parents=True, exist_ok=True)
        for lesson in told["lessons"]:
            name = lesson["lesson"]
            shutil.copyfile(Path(folder) / "shown" / name / "strip.png", PICTURES / f"{name}.png")
    save("demo-images", {"about": made_by, **told})


if __name__ == "__main__":
    main()
