"""What `lineas demo --images` prints and draws, recorded: benchmarks/results/demo-images.json and docs/images.

python -m benchmarks.images.demo_images

Also docs/images/world.png: what the model that comes with lineas makes of some prompts, in every style that it knows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lineas
from benchmarks.common.record import about, save
from lineas.reporting.image_grid import strip
from tools import world

PICTURES = Path(__file__).parents[2] / "docs" / "images"
SCENES = (
    "a big red heart in the middle on sky",
    "a striped blue star on the left on cream with a sun",
    "a green circle next to a yellow triangle on grey",
    "a purple ring above an orange square on mint",
    "a checkered pink diamond on the right on rose with a sun",
)


def main() -> None:
    """Run the demo as a user does, and keep its figures and strips; draw the styles."""
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
    model = lineas.load("shapes")
    drawn = [model.generate([f"{scene} {style}".strip() for scene in SCENES]) for style in ("", *world.STYLES)]
    strip(list(zip(*drawn)), SCENES, ["no style", *world.STYLES]).save(PICTURES / "world.png")


if __name__ == "__main__":
    main()
