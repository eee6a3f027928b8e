"""Every numeric option of every verb: read in plain digits, held against its bounds before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from console import run

from lineas.checks import Bounds
from lineas.cli import (
    calibrate,
    compose,
    evaluate,
    export,
    fold,
    gate,
    generate,
    learn,
    paint,
    report,
    serve,
    sweep,
)
from lineas.errors import LineasError

VERBS = [
    calibrate.calibrate, compose.compose, evaluate.evaluate, export.export, fold.fold, gate.gate, generate.generate,
    learn.learn, paint.paint, report.report, serve.serve, sweep.sweep,
]  # fmt: skip


def numeric() -> list[tuple[str, str, Any]]:
    """Verb, option and reading of every parameter that is a number, or several, or a size, or a strength."""
    found = []
    for verb in VERBS:
        for name, hint in get_type_hints(verb, include_extras=True).items():
            kinds = str(get_args(hint)[0]) if get_args(hint) else ""
            if "int" in kinds or "float" in kinds or name in ("strength", "size"):
                (info,) = get_args(hint)[1:]
                found.append((verb.__name__, info.default, info.callback))
    return found


NUMERIC = numeric()


def test_no_numeric_option_was_missed() -> None:
    assert len(NUMERIC) > 50
    assert {verb for verb, *_ in NUMERIC} == {verb.__name__ for verb in VERBS}
    assert {("sweep", "--jobs"), ("paint", "--size"), ("fold", "--strength")} <= {tuple(one[:2]) for one in NUMERIC}


@pytest.mark.parametrize(("verb", "option", "read"), NUMERIC, ids=[" ".join(one[:2]) for one in NUMERIC])
def test_numbers_out_of_bounds_are_refused_with_the_option_s_name(
    verb: str, option: str, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    many = "9" * 5000
    for value in ("nan", "inf", "-inf", "1e999", "-1e39", many, f"-{many}", "1_0", "\uff11", "\u0663", "many", ""):
        for given in (value, [value]):
            with pytest.raises(
                LineasError, match=rf"{option}( must be|: a strength is)|a size looks like 512x768"
            ) as refused:
                read(given)
            assert len(str(refused.value)) < 250
    code, out, err = run(capsys, verb, option, "many")  # before arguments are missed, and anything is read
    assert (code, out) == (2, "")
    assert err.startswith(("error: " + option, "error: a size looks like"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("generate", "--temperature", "1e-320"), "--temperature must be 0 or at least 1e-06"),
        (("generate", "--repetition-penalty", "0"), "--repetition-penalty must be at least 0.001"),
        (("generate", "--top-p", "0"), "--top-p must be at least 1e-06"),
        (("generate", "--max-new-tokens", str(10**12)), "--max-new-tokens must be at most 1000000"),
        (("generate", "--seed", str(2**64)), "--seed must be at most 18446744073709551615"),
        (("generate", "--strength", "0", "1e39"), "--strength must be at most 3e+38, not 1e+39"),
        (("generate", "--strength", "half"), "--strength: a strength is a number or 'calibrated', not 'half'"),
        (("learn", "--seed", str(-(2**63) - 1)), "--seed must be at least -9223372036854775808"),
        (("learn", "--alpha", "1e39"), "--alpha must be at most 1000000"),
        (("paint", "--size", "100000x100000"), "a side of --size must be at most 8192"),
        (("paint", "--size", "0x8"), "a side of --size must be at least 8"),
        (("sweep", "--jobs", "1000000"), "--jobs must be at most 1024"),
        (("serve", "m", "--port", "70000"), "--port must be at most 65535"),
        (
            ("calibrate", "--intervention", "polite", "--precision", "2"),
            "below the largest strength, not --precision 2 with --largest 1",
        ),
        (
            ("calibrate", "--intervention", "polite", "--max-damage", "ppl+1e400%", "--neutral", "x"),
            "'ppl+1e400%' is no finite number",
        ),
        (("fold", "m", "--intervention", "polite", "--out", "x", "--shard-size", "\u0663GB"), "a size looks like 8GiB"),
        (
            ("fold", "m", "--intervention", "polite", "--out", "x", "--shard-size", "9" * 400 + "GB"),
            "a size looks like 8GiB",
        ),
    ],
    ids=lambda given: " ".join(given[-1:])[:40] if isinstance(given, tuple) else None,
)
def test_what_would_fail_later_is_refused_now(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert sentence in err


def test_help_shows_the_bounds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "generate", "--help")
    assert "1..1e6" in out
    assert "-2^63..2^64-1" in out
    assert "1e-6..1" in out
    assert Bounds(0, 1, above=True).short == ">0..1"
