"""`lineas show`: print where an intervention acts, how much it changes, what folds, and what it was learned from."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineas.cli import options
from lineas.cli.common import screen_for, write_json
from lineas.cli.outputs import check_outputs
from lineas.intervention import model_card
from lineas.intervention.intervention import Intervention
from lineas.measures import value_text

BAR = 12
"""Number of columns of a bar."""
WIDE = 110
"""Smallest number of columns of a terminal on which the numbers behind the bars are shown too."""


def show(intervention: options.Intervention, json: options.Json = None, force: options.Force = False) -> None:
    """Show where an intervention acts, how much it changes, what folds, and what it was learned from."""
    check_outputs("show", json, force=force, inputs=[intervention])
    loaded = Intervention.load(intervention)
    rows = site_rows(loaded)
    draw(screen_for(json), loaded, rows)
    model = loaded.base.__dict__ if loaded.base else None
    facts = {"support": loaded.support(), "sites": rows, "facts": loaded.facts}
    write_json(json, {"intervention": intervention, "model": model, **facts}, "show")


def site_rows(intervention: Intervention) -> list[dict[str, Any]]:
    """Return for each site the share of touched neurons, the mean |scale - 1| and mean |shift|, and what folds."""
    folds = intervention.facts.get("folds", {})
    return [
        {
            "site": name,
            "width": map_.width,
            "touched": float(map_.support().float().mean()),
            "scale_change": float((map_.scale - 1).abs().double().mean()),
            "shift": float(map_.shift.abs().double().mean()),
            "folds": folds.get(name, "unknown"),
        }
        for name, map_ in intervention.maps.items()
    ]


def draw(console: Console, intervention: Intervention, rows: list[dict[str, Any]]) -> None:
    """Print sites as bars, and what is known of the intervention, on a terminal."""
    common = _common_prefix([row["site"] for row in rows])
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(f"site ({common}...)" if common else "site", overflow="fold")
    for column in ("touched", "", "size of the change", "folds"):
        table.add_column(column, no_wrap=True)
    if console.width >= WIDE:
        table.add_column("|scale-1|", justify="right")
        table.add_column("|shift|", justify="right")
    largest = max((row["scale_change"] + row["shift"] for row in rows), default=0) or 1
    for row in rows:
        size = (row["scale_change"] + row["shift"]) / largest
        cells = [row["site"].removeprefix(common), _bar(row["touched"]), f"{row['touched']:.1%}", _bar(size, "magenta")]
        numbers = [f"{row['scale_change']:.4f}", f"{row['shift']:.4f}"] if console.width >= WIDE else []
        table.add_row(*cells, row["folds"], *numbers)
    console.print(table)
    facts = intervention.facts
    exact = sum(row["folds"] == "exact" for row in rows)
    console.print(
        f"\nsupport {intervention.support():.2%} of {sum(row['width'] for row in rows)} neurons; "
        f"{sum(row['touched'] > 0 for row in rows)} of {len(rows)} sites touched; {exact} fold exactly"
    )
    if intervention.gates:
        area = facts.get("gate", {}).get("area")
        console.print(
            f"gated at {len(intervention.gates)} sites: each token gets its own share"
            + (f" (area under the ROC curve {area:.2f})" if area else "")
        )
    if "calibration" in facts:
        console.print(f"calibrated strength {intervention.calibrated_strength:.3g}")
    if intervention.unfinished:
        console.print(f"interrupted while learning, after {intervention.unfinished}")
    if intervention.base:
        console.print(f"learned on {intervention.base.name} ({intervention.base.architecture})")
    if "method" in facts:
        console.print(f"method {model_card.recipe(facts)}")
    if damage := model_card.damage_learned(facts):
        console.print(damage)
    if "made_by" in facts:
        console.print(f"made by {facts['made_by']}")
    for side, data in facts.get("data", {}).items():
        console.print(
            f"{side}: {data.get('count', '?')} prompts {data.get('file', '')} (sha256 {data.get('sha256', '?')[:12]})"
        )
    for row in facts.get("measurements", []):
        console.print("measured: " + ", ".join(f"{name} {value_text(row, name)}" for name in row))


def _common_prefix(names: list[str]) -> str:
    """Return the levels that all names have in common, such as "model.layers."."""
    levels = zip(*(name.split(".")[:-1] for name in names))
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels)]
    return ".".join([*common, ""]) if len(names) > 1 else ""


def _bar(share: float, color: str = "cyan") -> Text:
    filled = round(share * BAR)
    filled = max(filled, 1) if share > 0 else 0
    return Text.assemble(("█" * filled, color), ("·" * (BAR - filled), "dim"))
