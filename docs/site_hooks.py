"""What the site has beyond the files in docs: notebooks as pages, the command line's options, pages from elsewhere.

Links are written for the files of the repository, so that they work where those are read; here they become the site's.
"""

from __future__ import annotations

import inspect
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.lineas")
ROOT = Path(__file__).parents[1]
DOCS = "docs"
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "reference/shapes.md": "src/lineas/data/models/shapes/README.md",
}
"""By page, the file of the repository that it shows."""
VERBS = "<!-- verbs -->"
"""Stands on a page for the options of every verb."""
FIGURES = re.compile(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", re.DOTALL)
"""What a benchmark wrote on a page."""
ENTRY = re.compile(r'id="(lineas[\w.]+)" class="doc doc-heading">\s*<code class="[^"]*doc-symbol-(\w+)"')
"""An entry of the API in a built page: its name, and what it is."""
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s]+?)(#[^)\s]*)?(\))")


class Notebook(File):
    """A notebook that becomes a page, with the outputs that are stored in it."""

    def is_documentation_page(self) -> bool:
        return True

    @property
    def content_string(self) -> str:
        return "\n\n".join(_cells(json.loads(Path(self.abs_src_path or "").read_text(encoding="utf-8")))) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no Markdown in docs."""
    for name, place in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / place).read_text(encoding="utf-8")))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the verbs, and lead links to where files of the repository are on the site."""
    here = page.file.src_uri
    if VERBS in markdown:
        markdown = markdown.replace(VERBS, "\n".join(verbs()))
    markdown = FIGURES.sub(r'<div class="figures" markdown>\n\n\2\n\n</div>', markdown)
    place = posixpath.dirname(ELSEWHERE.get(here, f"{DOCS}/{here}"))
    shown = {file: name for name, file in ELSEWHERE.items()}

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(place, link[2]))
        on_site = shown.get(target, target.removeprefix(f"{DOCS}/"))
        return f"{link[1]}{posixpath.relpath(on_site, posixpath.dirname(here) or '.')}{link[3] or ''}{link[4]}"

    text = re.split(r"(^(?:```|~~~~).*?^(?:```|~~~~)$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else LINK.sub(lead, part) for i, part in enumerate(text))


def on_post_build(config: MkDocsConfig) -> None:
    """End the build where a public name has no entry, or no docstring."""
    pages = sorted((Path(config.site_dir) / "reference" / "api").glob("*.html"))
    problems = missing("".join(page.read_text(encoding="utf-8") for page in pages))
    if problems:
        raise PluginError("; ".join(problems))


def missing(html: str) -> list[str]:
    """Return a sentence for each public name of lineas without an entry in the pages of the API, or without docstring.

    Args:
        html: the built pages.
    """
    import lineas

    entries = {name for name, kind in ENTRY.findall(html) if kind in ("class", "function")}
    problems = []
    for name in lineas.__all__:
        kind = getattr(lineas, name)
        if isinstance(kind, str):  # the version
            continue
        if entries.isdisjoint((f"lineas.{name}", f"{kind.__module__}.{kind.__qualname__}")):
            problems.append(f"lineas.{name} is public and has no entry in {DOCS}/reference/api")
        if not inspect.getdoc(kind):
            problems.append(f"lineas.{name} has no docstring")
    return problems


# ---- the command line


def verbs() -> Iterator[str]:
    """Yield a section for every verb, from the command line itself."""
    from lineas.cli import VERBS as ALL
    from lineas.cli import _group as group_of

    for name in ALL:
        command = group_of(name).commands[name]
        yield from ("", f"## lineas {name}", "", *_help(command), "")
        arguments = [one for one in command.params if one.param_type_name == "argument" and one.name != "context"]
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        usage = " ".join(["lineas", name, *("[OPTIONS]" * bool(options), *map(_usage, arguments))])
        yield from ("```text", " ".join(usage.split()), "```", "")
        rows = [*(_row(one, f"`{_usage(one)}`") for one in arguments)]
        rows += [_row(one, f"`{one.opts[0]}`") for one in options]
        if rows:
            yield from ("| option | value | default | meaning |", "| --- | --- | --- | --- |", *rows)


def _help(command: Any) -> list[str]:
    return inspect.cleandoc(command.help or "").replace("<", "&lt;").splitlines()


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def _row(one: Any, name: str) -> str:
    default = "" if one.default in (None, False, (), []) or callable(one.default) else f"`{_label(one.default)}`"
    value = "" if one.param_type_name == "argument" or getattr(one, "is_flag", False) else f"`{_value(one)}`"
    cells = (name, value, "**required**" if one.required else default, _inline(one.help or ""))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(option: Any) -> str:
    if option.metavar:
        return option.metavar
    kind = option.type_descriptor.annotation
    return "|".join(one.value for one in kind) if issubclass(kind, Enum) else "TEXT"


def _label(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(getattr(value, "value", value))


def _inline(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*")


# ---- notebooks


def _cells(notebook: dict[str, Any]) -> Iterator[str]:
    """Yield each cell as Markdown, followed by its outputs."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", []):
            yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    """Yield what a cell printed, or the picture that it showed."""
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join(data["image/png"]).strip()
        yield f'<img alt="picture made by the cell above" src="data:image/png;base64,{png}">'
    elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
        yield f"```text\n{text}\n```"
