"""The output and the pictures of `lineas demo --images`, recorded: benchmarks/results/demo-images.json and docs/images.

python -m benchmarks.images.demo_images

Also docs/images/world.png: what the model that comes with lineas makes of some prompts, in every style that it knows.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.common import markdown, record
from benchmarks.showcase.demo import run_demo
from lineas.measures import measure

PICTURES = record.DOCS / "images"
SCENES = (
    "a big red heart in the middle on sky",
    "a striped blue star on the left on cream with a sun",
    "a green circle next to a yellow triangle on grey",
    "a purple ring above an orange square on mint",
    "a checkered pink diamond on the right on rose with a sun",
)
JUDGED = {"night": "taken for night", "sun": "taken for a picture with a sun"}


def main() -> None:
    """Run the demo as a user does, and keep its figures and strips; draw the styles."""
    import lineas
    from lineas.reporting.image_grid import strip
    from tools import world

    with tempfile.TemporaryDirectory() as folder:
        printed, figures = run_demo(Path(folder), "--images")
        print(printed)
        record.save("demo-images", {}, figures)
        for lesson in figures["lessons"]:
            name = lesson["lesson"]
            shutil.copyfile(Path(folder) / "demo-output" / name / "strip.png", PICTURES / f"{name}.png")
    model = lineas.load("shapes")
    drawn = [model.generate([f"{scene} {style}".strip() for scene in SCENES]) for style in ("", *world.STYLES)]
    strip(list(zip(*drawn)), SCENES, ["no style", *world.STYLES]).save(PICTURES / "world.png")


def table(result: record.Result) -> str:
    """Return a line for each lesson and strength."""
    lines = [
        (
            f"`{lesson['lesson']}`",
            f"{row['strength']:g}",
            f"{markdown.percent(row['concept'])} {JUDGED[lesson['lesson']]}",
            f"{measure('img_score').text(row['img_score'])} %",
        )
        for lesson in result.made["lessons"]
        for row in lesson["rows"]
    ]
    return markdown.table(("learned", "strength", "judged", "likeness to the untouched picture"), lines)


if __name__ == "__main__":
    main()
