"""Code blocks of README and docs: found, read by the real command line, and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from console import exit_code

from lineas.cli import VERBS, _group, _spread

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted((*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"))
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
FEWER = {
    "learn": ("--steps", "2", "--samples", "8"),
    "generate": ("--max-new-tokens", "4"),
    "evaluate": ("--limit", "4"),
    "calibrate": ("--limit", "4", "--precision", "0.5"),
    "gate": ("--samples", "8"),
    "paint": (),
}
"""By verb, the options with which a command of the pages is run here, so that it takes seconds."""
STEPLESS = ("--method",)
"""With these options a command of `learn` has no steps."""


class Block(NamedTuple):
    """A code block.

    Args:
        page: path in the repository.
        line: number of its first line.
        language: the word after the backticks.
        code: what it holds.
    """

    page: str
    line: int
    language: str
    code: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The code blocks of a page in these languages, or all of them, from top to bottom."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    found = [Block(name, text[: m.start()].count("\n") + 2, m[2], m[3]) for m in BLOCK.finditer(text)]
    return [one for one in found if not languages or one.language in languages]


def commands(block: Block) -> list[list[str]]:
    """The arguments of the commands of lineas in a shell block, without comments."""
    lines = re.sub(r"\s*\\\n\s*", " ", block.code).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [one[1:] for one in words if one[:1] == ["lineas"]]


def read(arguments: list[str]) -> None:
    """Have the real command line read the arguments of a command, without running it.

    Raises:
        Exception: when there is no such verb or option, or a value is none.
    """
    group = _group(arguments[0])
    verb, *rest = arguments if arguments[0] == "lm-eval" else _spread(group, arguments)
    if verb not in VERBS:
        known = [name for option in group.params for name in option.opts]
        assert verb in known, f"No such verb or option: {verb}"
        return
    group.commands[verb].make_context(verb, [*rest])


def run(arguments: list[str]) -> int:
    """Run a command with few steps and texts; return its exit code."""
    fewer = list(FEWER.get(arguments[0], ()))
    if arguments[0] == "learn" and set(STEPLESS) & set(arguments):
        fewer = fewer[2:]
    return exit_code([*arguments, *fewer])
