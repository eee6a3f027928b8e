"""The settings in a server's environment, and the interventions of its front end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

import lineas
from lineas import vllm_plugin
from lineas.errors import LineasError
from lineas.vllm_plugin import admin
from lineas.vllm_plugin.frontend import Loaded, Registry
from lineas.vllm_plugin.settings import Settings
from lineas.vllm_plugin.worker import _add_to_cache_key


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, None),
        ({"LINEAS_INTERVENTIONS": ""}, None),
        ({"LINEAS_INTERVENTIONS": "calm=a/b, brief=c,"}, Settings({"calm": "a/b", "brief": "c"})),
        ({"LINEAS_ADMIN_KEY": "k"}, Settings({}, room=4, admin_key="k")),
        ({"LINEAS_ADMIN_KEY": "k", "LINEAS_ROOM": "1"}, Settings({}, room=1, admin_key="k")),
        (
            {"LINEAS_INTERVENTIONS": "calm=a=b", "LINEAS_OTHER_MODEL": "1", "LINEAS_SITES": ".*norm"},
            Settings({"calm": "a=b"}, sites=".*norm", force=True),
        ),
    ],
)
def test_the_environment_is_read(environment: dict[str, str], settings: Settings | None) -> None:
    assert Settings.read(environment) == settings


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"LINEAS_INTERVENTIONS": "calm"}, "is 'name=DIR,name=DIR' with every name once, not 'calm'"),
        ({"LINEAS_INTERVENTIONS": "calm=a,calm=b"}, "every name once"),
        ({"LINEAS_INTERVENTIONS": "a@b=c"}, "name is letters, digits"),
        ({"LINEAS_ROOM": "much"}, "LINEAS_ROOM must be a whole number from 0 to 1000, not 'much'"),
        ({"LINEAS_ROOM": "1_0"}, "LINEAS_ROOM must be a whole number from 0 to 1000, not '1_0'"),
        ({"LINEAS_ROOM": "\u0663"}, "LINEAS_ROOM must be a whole number from 0 to 1000"),
        ({"LINEAS_ROOM": "-1"}, "LINEAS_ROOM must be at least 0"),
        ({"LINEAS_ROOM": "9" * 30}, "LINEAS_ROOM must be at most 1000"),
        ({"LINEAS_ADMIN_KEY": "k", "LINEAS_FORCE": "ja"}, "LINEAS_FORCE is 1 .* or 0 .*, not 'ja'"),
        ({"LINEAS_ADMIN_KEY": "k", "LINEAS_OTHER_MODEL": "2"}, "LINEAS_OTHER_MODEL is 1"),
        ({"LINEAS_INTERVENTIONS": "x" * 10**6}, r"name is letters.*, not 'x{79}\.\.\.\.$"),
    ],
)
def test_what_the_environment_should_not_say(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        Settings.read(environment)


@pytest.mark.parametrize("said", ["1", "true", "Yes", "on"])
def test_another_model_is_accepted_by_its_new_name_and_by_the_old_with_a_warning(said: str) -> None:
    key = {"LINEAS_ADMIN_KEY": "k"}
    assert Settings.read(key | {"LINEAS_OTHER_MODEL": said}) == Settings({}, 4, "k", force=True)
    with pytest.warns(UserWarning, match="LINEAS_FORCE is called LINEAS_OTHER_MODEL now"):
        assert Settings.read(key | {"LINEAS_FORCE": said}) == Settings({}, 4, "k", force=True)
    assert Settings.read(key | {"LINEAS_FORCE": "0"}) == Settings({}, 4, "k")


def test_the_list_shows_names_alone_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_plugin, "_registry", Registry(Settings({"polite": "polite"}, admin_key="k")))
    endpoint = admin.Interventions()
    assert endpoint._listing(whole=False) == {"interventions": [{"name": "polite"}]}
    (told,) = endpoint._listing(whole=True)["interventions"]
    assert told.keys() == {"name", "support", "folder"}


def test_what_is_posted_is_two_texts() -> None:
    assert admin.read_post(b'{"name": "calm", "folder": "DIR"}') == ("calm", "DIR")
    for body in (
        b"",
        b"[]",
        b"\xff",
        b'{"name": 5, "folder": "x"}',
        b'{"name": "x"}',
        b"[" * 10**5,
        b'{"name": "a", "name": "b", "folder": "x"}',
        b'{"name": "a", "folder": "\\u0000"}',
    ):
        with pytest.raises(LineasError, match=r"in JSON|no folder has the name"):
            admin.read_post(body)

    async def stream() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    with pytest.raises(LineasError, match="at most 16384 bytes"):
        asyncio.run(admin._body(SimpleNamespace(stream=stream)))


def test_without_interventions_vllm_is_left_alone() -> None:
    """Also where vLLM is not installed: nothing of it is imported."""
    script = (
        "import lineas.vllm_plugin as p, sys; p.register(); assert not any(m.startswith('vllm') for m in sys.modules)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LINEAS_")}
    subprocess.run([sys.executable, "-c", script], env=clean, check=True)


def test_contents_differ_where_numbers_do() -> None:
    formal = lineas.Intervention.load("formal")
    assert formal.digest() == lineas.Intervention.load("formal").digest()
    assert len({formal.digest(), formal.at(0.5).digest(), lineas.Intervention.load("polite").digest()}) == 3


def engine_request(extra: dict[str, Any] | None, salt: str | None = None) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra), cache_salt=salt)


def test_an_engine_request_carries_places_and_a_salt_of_its_own() -> None:
    registry = Registry(Settings({"polite": "polite", "formal": "formal"}))
    plain = registry.steer(engine_request({"lineas_places": [[0, 9.0]]}))
    assert (plain.sampling_params.extra_args, plain.cache_salt) == (None, None)  # nobody else writes places
    steered = registry.steer(engine_request({"lineas": "formal:0.5", "other": 1}))
    assert steered.sampling_params.extra_args == {"lineas": "formal:0.5", "other": 1, "lineas_places": [[1, 0.5]]}
    stronger = registry.steer(engine_request({"lineas": "formal"}))
    assert len({None, steered.cache_salt, stronger.cache_salt}) == 3
    # another content under the same name is another prefix
    other = Registry(Settings({"formal": "polite"})).steer(engine_request({"lineas": "formal"}))
    assert other.cache_salt != stronger.cache_salt
    # and one content under two names is not the second alone
    twice = Registry(Settings({"a": "formal", "b": "formal"}))
    both = twice.steer(engine_request({"lineas": "a:0.5,b:2"}))
    assert both.cache_salt != twice.steer(engine_request({"lineas": "b:2"})).cache_salt


def test_places_are_given_once() -> None:
    registry, formal = Registry(Settings({"polite": "polite"}, room=1)), lineas.Intervention.load("formal")
    assert registry.free_place("formal") == 1
    registry.loaded["formal"] = Loaded.of(1, "formal")
    with pytest.raises(LineasError, match="all 2 places are taken"):
        registry.free_place("archaic")
    del registry.loaded["polite"]
    assert registry.free_place("archaic") == 0
    assert registry.loaded["formal"] == Loaded(1, "formal", formal.digest(), formal.support())


def test_graphs_are_named_also_where_lineas_runs_without_being_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("lineas.versions.version", missing)
    config = SimpleNamespace(additional_config={})
    _add_to_cache_key(config, Settings({}, room=1, admin_key="k"), {})
    assert config.additional_config["lineas"]["version"] == "unknown"
