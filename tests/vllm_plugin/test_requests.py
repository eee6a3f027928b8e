"""The steering in requests, and the salts of their cached prefixes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineas.errors import LineasError
from lineas.vllm_plugin.requests import SALT, parse, salted, split_model

LOADED = ["calm", "brief", "v1.2_b-c"]


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("calm", {"calm": 1.0}),
        ("calm:0.7,brief:0.3", {"calm": 0.7, "brief": 0.3}),
        (" brief @ -2 , v1.2_b-c:1e-1", {"brief": -2.0, "v1.2_b-c": 0.1}),
        ("calm:0,brief", {"brief": 1.0}),
        ("calm:0", {}),
    ],
)
def test_names_and_strengths(text: str, strengths: dict[str, float]) -> None:
    assert parse(text, LOADED) == strengths


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loud:1", "no intervention 'loud' here. Loaded: brief, calm, v1.2_b-c."),
        ("", "no intervention '' here"),
        ("calm,,brief", "no intervention '' here"),
        ("calm:", "the strength of 'calm' is '', not a number from -1000 to 1000"),
        ("calm:1:2", "is '1:2', not a number"),
        ("calm:inf", "is 'inf', not a number"),
        ("calm:nan", "is 'nan', not a number"),
        ("calm:1_0", "is '1_0', not a number"),
        ("calm:\uff11", "not a number"),
        ("calm:\u0663", "not a number"),
        ("calm:1e39", "is '1e39', not a number from -1000 to 1000"),
        ("calm:1,calm:1", "has two strengths"),
        (0.7, "steering is written as 'name:strength,name:strength', not 0.7"),
        (["calm"], "not ['calm']"),
    ],
)
def test_what_cannot_be_understood_names_what_is_loaded(text: Any, sentence: str) -> None:
    with pytest.raises(LineasError) as error:
        parse(text, LOADED)
    assert sentence in str(error.value)
    assert "Loaded: brief, calm, v1.2_b-c." in str(error.value)


@pytest.mark.parametrize(
    "text", ["x" * 10**6, ["x" * 100] * 10**4, "calm:" + "9" * 10**6, "calm," * 10**5, {"x": "y" * 10**6}]
)
def test_a_request_is_repeated_in_part(text: Any) -> None:
    with pytest.raises(LineasError) as error:
        parse(text, LOADED)
    assert len(str(error.value)) < 300


def test_nothing_loaded_is_said() -> None:
    with pytest.raises(LineasError, match=r"Loaded: none\."):
        parse("calm", [])


@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("org/model:calm@0.7", ("org/model", "calm@0.7")),
        ("org/model:8b:calm", ("org/model:8b", "calm")),  # the longest base there is
        ("org/model:8b", ("org/model", "8b")),
        ("org/model", None),
        ("org/modelling:calm", None),
        ("other:calm", None),
    ],
)
def test_the_model_name_is_split_at_a_base(model: str, split: tuple[str, str] | None) -> None:
    assert split_model(model, ["org/model", "org/model:8b"]) == split


pairs = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-2, 2).filter(bool)), max_size=4)
salts = st.none() | st.text(max_size=5)


@given(salts, pairs, salts, pairs)
def test_two_salts_are_one_only_for_one_salt_and_one_steering(
    salt: str | None, given: list[tuple[str, float]], other_salt: str | None, other: list[tuple[str, float]]
) -> None:
    same = (salt, sorted(given)) == (other_salt, sorted(other))
    assert (salted(salt, given) == salted(other_salt, other)) == same


@given(salts, pairs, pairs)
def test_a_client_cannot_write_the_salt_of_steered_requests(
    salt: str | None, known: list[tuple[str, float]], own: list[tuple[str, float]]
) -> None:
    forged = salted(salt, known)
    again = salted(forged, own)
    if known:
        assert forged is not None
        assert forged.startswith(SALT)
        assert again != forged
    assert salted(salt, []) == salt  # what lineas has no part in stays as it is
