"""Output on the terminal, in which control characters are shown and never sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lineas.printable import in_a_line, printable


class Terminal(Console):
    """A console of rich that reads no markup and shows the control characters of the texts it prints.

    Rich adds the control characters of its own styles, tables and bars afterwards.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich text, before it is measured and broken into lines."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the printed segments, each with its control characters shown."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def terminal(stderr: bool = False, **options: Any) -> Terminal:
    """Return the terminal on standard output or standard error."""
    return Terminal(stderr=stderr, **options)


def print_aside(sentence: str, kind: str = "", color: str = "") -> None:
    """Print a sentence in one line on standard error, after its kind, such as "error"."""
    beginning = [(f"{kind}:", color), " "] if kind else []
    terminal(stderr=True, soft_wrap=True).print(Text.assemble(*beginning, in_a_line(sentence)))


def list_aside(lines: Iterable[str]) -> None:
    """Print sentences on standard error, each in its own line."""
    for line in lines:
        print_aside(line)
