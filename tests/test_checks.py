"""Numbers and texts as Python, requests and the environment give them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lineas
from lineas import LineasError
from lineas.checks import (
    COUNT,
    PROBABILITY,
    SEED,
    STRENGTH,
    TEMPERATURE,
    Bounds,
    as_bytes,
    as_seed,
    as_texts,
    flag,
    number,
    whole,
)
from lineas.learning import Fit, gamma_path

BOUNDS = [COUNT, SEED, STRENGTH, PROBABILITY, TEMPERATURE]


@given(st.sampled_from(BOUNDS), st.floats() | st.integers() | st.booleans() | st.none() | st.text() | st.just(10**5000))
def test_a_number_is_within_its_bounds_or_refused_in_a_short_sentence(bounds: Bounds, value: Any) -> None:
    try:
        checked = bounds.check("it", value)
    except LineasError as error:
        sentence = str(error)
    else:
        assert math.isfinite(checked)
        assert bounds.least <= checked <= bounds.most or (bounds.or_zero and checked == 0)
        assert type(checked) is (int if bounds.whole else float)
        return
    assert sentence.startswith("it must be ")
    assert len(sentence) < 250


@given(st.floats(allow_nan=False) | st.integers())
def test_plain_digits_are_read(value: float) -> None:
    assert number(repr(value)) == float(value)
    if isinstance(value, int):
        assert whole(str(value)) == value


@pytest.mark.parametrize("text", ["1_0", "\uff11", "\u0663", "0x1", "1e", "", " ", "1 0", "½", "--1", "1,5", "0b1"])
def test_other_ways_to_write_a_number_are_not_read(text: str) -> None:
    for read in (number, whole):
        with pytest.raises(ValueError, match="is no "):
            read(text)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    assert type(COUNT.check("it", np.int64(3))) is int
    assert type(STRENGTH.check("it", np.float32(0.5))) is float
    assert type(lineas.LinEAS(steps=np.int64(3)).steps) is int  # pyright: ignore[reportArgumentType]


def test_seeds_go_on_at_zero() -> None:
    assert [as_seed(n) for n in (-1, 2**64 - 1, 2**64)] == [-1, 2**64 - 1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 8 * 2**30), ("500 MB", 5 * 10**8), ("0.5g", 5 * 10**8), ("64KiB", 2**16), (1234, 1234), ("77", 77)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, expected: int) -> None:
    assert as_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "3 PiB", "1e9", "GiB"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(LineasError, match="looks like 8GiB"):
        as_bytes(text)


@pytest.mark.parametrize(("text", "on"), [("1", True), ("true", True), ("Yes", True), ("0", False), ("", False)])
def test_switches_of_the_environment(text: str, on: bool) -> None:
    assert flag("X", text) is on
    with pytest.raises(LineasError, match="X is 1"):
        flag("X", "maybe")


@pytest.mark.parametrize("given", ["one", None, 5, ["a", 5], ["a", None], b"a"])
def test_texts_are_a_list_of_texts(given: Any) -> None:
    with pytest.raises(LineasError, match=r"^the source "):
        as_texts("the source", given)


def test_a_generator_is_read_once() -> None:
    assert as_texts("it", (word for word in "ab")) == ["a", "b"]


class Silent:
    """An object that cannot be written in a sentence."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


SIDES = (["a b", "c d"], ["e f", "g h"])
CALLS: list[tuple[str, Any]] = [
    ("the source must be a list of prompts, not None", lambda m: lineas.learn(m, None, SIDES[1])),  # pyright: ignore[reportArgumentType]
    ("number 2 of it is an int", lambda m: lineas.learn(m, ["a", 5], SIDES[1])),  # pyright: ignore[reportArgumentType]
    ("such as lineas.LinEAS\\(\\), not 'lineas'", lambda m: lineas.learn(m, *SIDES, "lineas")),  # pyright: ignore[reportArgumentType]
    ("such as lineas.LinEAS\\(\\), not LinEAS", lambda m: lineas.learn(m, *SIDES, lineas.LinEAS)),  # pyright: ignore[reportArgumentType]
    ("sites must be a list of names of modules, not an int", lambda m: lineas.learn(m, *SIDES, sites=5)),  # pyright: ignore[reportArgumentType]
    ("number 1 of it is a Silent", lambda m: m.generate([Silent()])),
    ("cannot be learned on as it is; wrap it", lambda m: lineas.learn(m.network, *SIDES)),
    ("cannot be learned on as it is; wrap it", lambda m: lineas.learn(Mock(spec=["network", "sites", "run"]), *SIDES)),
    ("start must be an intervention", lambda m: lineas.learn(m, *SIDES, start="polite")),  # pyright: ignore[reportArgumentType]
    ("on must be an intervention", lambda m: lineas.learn(m, *SIDES, on="polite")),  # pyright: ignore[reportArgumentType]
    ("seed must be at most", lambda m: lineas.learn(m, *SIDES, seed=2**64)),
    ("seed must be at least", lambda m: lineas.learn(m, *SIDES, seed=-(2**63) - 1)),
    ("max_length must be a whole number", lambda m: lineas.learn(m, *SIDES, max_length=1.5)),  # pyright: ignore[reportArgumentType]
    ("max_length must be at least 1", lambda m: lineas.learn(m, *SIDES, max_length=0)),
    ("a size looks like", lambda m: lineas.learn(m, *SIDES, memory="9" * 400 + "GiB")),
    ("seed must be at most", lambda m: m.generate(["a"], seed=2**64)),
    ("temperature must be 0 or at least", lambda m: m.generate(["a"], temperature=math.nan)),
    ("temperature must be 0 or at least", lambda m: m.generate(["a"], temperature=1e-320)),
    ("repetition_penalty must be", lambda m: m.generate(["a"], repetition_penalty=math.nan)),
    ("top_p must be", lambda m: m.generate(["a"], top_p=math.nan)),
    ("top_p must be at most 1", lambda m: m.generate(["a"], top_p=3)),
    ("max_new_tokens must be at most", lambda m: m.generate(["a"], max_new_tokens=10**12)),
    ("batch_size must be at least 1", lambda m: m.generate(["a"], batch_size=0)),
    ("the prompts must be a list of prompts, not None", lambda m: m.generate(None)),
    ("number 1 of it is None", lambda m: m.generate([None])),
    ("gamma must be 0 or more", lambda m: next(gamma_path(m, *SIDES, [math.nan]))),
]


@pytest.mark.parametrize(("sentence", "call"), CALLS, ids=[sentence[:40] for sentence, _ in CALLS])
def test_what_python_is_given_is_checked_before_anything_runs(
    stories: lineas.TextModel, sentence: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineas.TextModel, "batch", None)
    with pytest.raises(LineasError, match=sentence):
        call(stories)


def test_learning_takes_a_generator_and_says_when_nothing_was_learned(stories: lineas.TextModel) -> None:
    method = lineas.LinEAS(steps=1)
    learned = lineas.learn(stories, (side for side in SIDES[0]), SIDES[1], method, progress=False)  # pyright: ignore[reportArgumentType]
    assert learned.facts["data"]["source"]["count"] == 2
    with pytest.warns(UserWarning, match="nothing was learned: no neuron is changed"):
        lineas.learn(stories, SIDES[0], SIDES[0], method, progress=False)


def test_a_length_at_which_all_prompts_are_alike_is_refused(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match=r"max_length 1 leaves no token .* give at least 2"):
        lineas.learn(stories, *SIDES, max_length=1)


@dataclass(frozen=True)
class Far:
    """A method that moves so far that the cost is infinite."""

    default_sites: ClassVar[None] = None

    def fit(self, task: Any) -> Fit:
        return Fit({site.name: lineas.AffineMap.identity(64) for site in task.sites}, [math.inf])


def test_a_cost_that_is_not_finite_is_no_learning(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match="is not finite, so nothing was learned"):
        lineas.learn(stories, *SIDES, Far(), progress=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="alpha must be at most 1000000"):
        lineas.ITIc(alpha=1e39)
