"""Foreign text, made safe for a terminal, a line, Markdown or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

LONGEST = 80
"""Maximum number of characters of a foreign text in a sentence."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""C0 and C1 controls and DEL (which terminals obey), line separators, changes of the text's direction, and halves of
characters (which cannot be encoded), without the tab and the line feed."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning in Markdown; an underscore within a word has none."""


def printable(text: str) -> str:
    r"""Return a text with its control characters made visible; line feeds and tabs stay.

    >>> printable("a\x1b[2Jb\u202ec")
    'a\\x1b[2Jb\\u202ec'
    """
    return _CONTROLS.sub(lambda found: _shown(found[0]), text)


def in_a_line(text: str) -> str:
    r"""Return a text in one line, with all control characters made visible.

    >>> in_a_line("a\nb\tc")
    'a\\nb\\tc'
    """
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a text, for a sentence.

    >>> shortened("abcdef", 3)
    'abc...'
    """
    return text if len(text) <= longest else f"{text[:longest]}..."


def as_label(strength: float) -> str:
    """Return the shortest text that identifies a number.

    >>> as_label(1.0), as_label(0.1234567), as_label(-0.0)
    ('1', '0.1234567', '0')
    """
    return repr(float(strength) + 0.0).removesuffix(".0")


def in_markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is, in a paragraph, a heading or a cell of a table.

    >>> in_markdown("a|b <i> *c* toxic_score")
    'a\\|b \\<i\\> \\*c\\* toxic_score'
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], in_a_line(text))


def as_code(text: str) -> str:
    """Return a text as code in Markdown.

    >>> as_code("x"), as_code("a`b")
    ('`x`', '`` a`b ``')
    """
    text = in_a_line(text)
    runs = [len(run) for run in re.findall("`+", text)]
    if not runs:
        return f"`{text}`"
    fence = "`" * (max(runs) + 1)
    return f"{fence} {text} {fence}"


def front_matter(library: str, base_model: str | None, name: str = "", results: Sequence[Any] = ()) -> list[str]:
    """Return the lines of YAML at the beginning of a model card; the results are `huggingface_hub.EvalResult`.

    >>> front_matter("lineas", "me/a: b")[1]
    "base_model: 'me/a: b'"
    """
    from huggingface_hub import ModelCardData  # it takes long to import

    base_model = None if base_model is None else in_a_line(base_model)  # YAML would write some controls raw
    card = ModelCardData(library_name=library, tags=["lineas", "steering"], base_model=base_model)
    if results:
        card.model_name, card.eval_results = name, list(results)
    # the tags last, since to_yaml strips white space from the end, which may belong to a name
    yaml = card.to_yaml(original_order=["base_model", "library_name", "tags"])
    return ["---", *yaml.split("\n"), "---"]


def as_json(content: Any) -> str:
    """Return indented JSON with all letters as they are, but with escaped control characters."""
    return escaped(json.dumps(content, indent=1, ensure_ascii=False))


def escaped(json_text: str) -> str:
    """Return a JSON text with escaped control characters."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def _shown(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
