"""Requests of an unmodified OpenAI client against a live server, compared with plain transformers."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from conftest import KEY, Server

import lineas

PROMPTS = ["You are a", "My neighbour said that", "Dear Sir, I am writing", "The referee was"]
PATIENCE = 300
"""Seconds that one answer may take: what removes an intervention waits for all requests that began before."""


def live(model: lineas.TextModel, prompt: str, strengths: dict[str, float]) -> str:
    """The greedy continuation that lineas makes in plain transformers."""
    interventions = {lineas.Intervention.load(name): strength for name, strength in strengths.items()}
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 24}
    if not interventions:
        return model.generate([prompt], **greedy)[0]
    with lineas.steer(model, lineas.mix(interventions)):
        return model.generate([prompt], **greedy)[0]


@pytest.mark.parametrize(
    ("steering", "strengths"),
    [
        (None, {}),
        ("polite:0", {}),
        ("polite", {"polite": 1.0}),
        ("formal:2.5", {"formal": 2.5}),
        ("polite:-1", {"polite": -1.0}),
        ("polite:1.5,formal:0.5", {"polite": 1.5, "formal": 0.5}),
    ],
)
def test_a_request_gets_what_live_steering_gives(
    server: Server, model: lineas.TextModel, steering: str | None, strengths: dict[str, float]
) -> None:
    found = [server.text(prompt, steering) for prompt in PROMPTS]
    assert found == [live(model, prompt, strengths) for prompt in PROMPTS]
    plain = [live(model, prompt, {}) for prompt in PROMPTS]
    assert (found != plain) == bool(strengths)  # strong enough to be seen


def test_the_model_name_steers_too(server: Server) -> None:
    for prompt in PROMPTS:
        by_argument = server.text(prompt, "polite:1.5,formal:0.5")
        assert server.text(prompt, model="smol:polite@1.5,formal@0.5") == by_argument
        assert server.text(prompt, model="smol:polite:1.5,formal:0.5") == by_argument


def test_every_sample_of_a_request_is_steered(server: Server) -> None:
    made = server.client.completions.create(
        model="smol:formal@2.5", prompt=PROMPTS[0], max_tokens=24, temperature=1, top_p=1e-6, n=3
    )
    assert {choice.text for choice in made.choices} == {server.text(PROMPTS[0], "formal:2.5")}


def test_responses_are_steered(server: Server) -> None:
    def answer(model: str) -> str:
        return server.client.responses.create(
            model=model, input="Tell me about your neighbour.", max_output_tokens=24, temperature=0
        ).output_text

    assert answer("smol:formal@2.5") != answer("smol") != ""
    with pytest.raises(openai.BadRequestError, match="there is no intervention 'calm' here"):
        answer("smol:calm")


def test_endpoints_that_do_not_steer_say_so(server: Server) -> None:
    body = json.dumps({"model": "smol:polite", "prompt": "You"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/tokenize", data=body, headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 400
    assert b"this endpoint does not steer" in refused.value.read()


def test_chat_and_streams_are_steered(server: Server) -> None:
    messages: Any = [{"role": "user", "content": "Tell me about your neighbour."}]

    def chat(model: str, **more: Any) -> str:
        made = server.client.chat.completions.create(
            model=model, messages=messages, max_tokens=24, temperature=0, **more
        )
        return made.choices[0].message.content or ""

    steered = chat("smol:formal@2.5")
    assert steered != chat("smol")
    assert steered == chat("smol", extra_body={"vllm_xargs": {"lineas": "formal:2.5"}})
    stream = server.client.completions.create(
        model="smol:formal@2.5", prompt=PROMPTS[0], max_tokens=24, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in stream) == server.text(PROMPTS[0], "formal:2.5")


def test_requests_of_many_strengths_share_batches(server: Server) -> None:
    """200 at once, every answer the one that the request gets alone."""
    requests = [(PROMPTS[i % 4], f"polite:{(i % 10) / 4},formal:{(i % 7) / 3}" if i % 5 else None) for i in range(200)]
    alone = {request: server.text(*request) for request in dict.fromkeys(requests)}
    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(lambda request: server.text(*request), requests))
    assert len(set(alone.values())) > 20
    assert together == [alone[request] for request in requests]


def test_the_prefix_cache_never_mixes(server: Server, model: lineas.TextModel) -> None:
    """One long prompt unsteered, steered, at another strength and unsteered again, each twice: the second is cached."""
    prompt = "The letter that lay on the table was long, and it said many things about the old house. " * 12
    ways: list[dict[str, float]] = [{}, {"formal": 2.5}, {"formal": -2.0}, {"polite": 2.0}]
    expected = [live(model, prompt, strengths) for strengths in ways]
    assert len(set(expected)) > 2
    for _ in range(2):
        for strengths, wanted in zip(ways, expected):
            steering = ",".join(f"{name}:{strength}" for name, strength in strengths.items())
            assert server.text(prompt, steering or None) == wanted
    assert _cached_tokens(server) > 0


def test_a_clients_salt_cannot_stand_for_steering(server: Server, model: lineas.TextModel) -> None:
    from lineas.vllm_plugin.requests import salted

    prompt = "She looked out of the window of the train and thought about the people she had met in town. " * 12
    forged = salted(None, [(lineas.Intervention.load("formal").digest(), 2.5)])
    server.text(prompt, "formal:2.5")
    assert server.text(prompt, cache_salt=forged) == live(model, prompt, {})


@pytest.mark.parametrize(
    ("steering", "sentence"),
    [
        ("calm:0.5", "there is no intervention 'calm' here. Loaded: formal, polite."),
        ("polite:much", "the strength of 'polite' is 'much', not a number from -1000 to 1000. Loaded: formal, polite."),
        ("polite:nan", "not a number from"),
        ("polite:1,polite:2", "has two strengths"),
        ("", "there is no intervention '' here"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_understood_is_refused(server: Server, steering: str, sentence: str, stream: bool) -> None:
    argument = {"vllm_xargs": {"lineas": steering}}
    with pytest.raises(openai.BadRequestError) as by_argument:
        server.client.completions.create(model="smol", prompt="You", stream=stream, extra_body=argument)
    assert sentence in str(by_argument.value)
    with pytest.raises(openai.BadRequestError) as by_name:
        server.client.completions.create(model=f"smol:{steering}", prompt="You", stream=stream)
    assert sentence in str(by_name.value)


def test_steering_is_not_said_twice_nor_lost(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="said twice"):
        server.text("You", "polite", model="smol:formal")
    with pytest.raises(openai.BadRequestError, match="beam search is not steered"):
        server.text("You", "polite", use_beam_search=True, n=2)
    with pytest.raises(openai.NotFoundError):
        server.text("You", model="other:polite")
    assert server.text("You", vllm_xargs={"lineas_places": [0, 3]}) == server.text("You")


def test_the_models_are_listed(server: Server) -> None:
    assert {model.id for model in server.client.models.list()} == {"smol", "smol:polite", "smol:formal"}


def test_interventions_come_and_go(server: Server, tmp_path: Any) -> None:
    alone = server.text(PROMPTS[1], "formal:2.5")
    plain = server.text(PROMPTS[1])
    folder = str(lineas.Intervention.load("formal").at(2.5).save(tmp_path / "formal"))
    status, told = call(server, "POST", {"name": "very", "folder": folder})
    assert (status, [known["name"] for known in told["interventions"]]) == (200, ["polite", "formal", "very"])
    assert server.text(PROMPTS[1], "very") == alone
    # what runs, and what waits for its turn, ends as it began
    many = [f"{prompt} {i}" for i in range(20) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(many) + 1) as pool:
        made = [pool.submit(server.text, prompt, "very", max_tokens=100, ignore_eos=True) for prompt in many]
        until = time.monotonic() + 60
        while _in_flight(server) < len(many):  # each is known to the engine: 64 run, the others wait
            assert time.monotonic() < until
            time.sleep(0.01)
        gone = pool.submit(call, server, "DELETE", name="very")
        before = [each.result() for each in made]
        assert gone.result()[0] == 200
        assert call(server, "POST", {"name": "very", "folder": folder})[0] == 200
        again = [pool.submit(server.text, prompt, "very", max_tokens=100, ignore_eos=True) for prompt in many]
        assert before == [each.result() for each in again]
    shutil.rmtree(folder)  # a server that loses the folder goes on with what it read
    assert server.text(PROMPTS[1], "very:0.4") == server.text(PROMPTS[1], "formal")
    # the name goes, and another content takes its place: nothing of the first stays
    assert call(server, "DELETE", name="very")[0] == 200
    with pytest.raises(openai.BadRequestError, match="there is no intervention 'very' here"):
        server.text(PROMPTS[1], "very")
    other = str(lineas.Intervention.load("polite").at(-1).save(tmp_path / "polite"))
    assert call(server, "POST", {"name": "very", "folder": other})[0] == 200
    assert server.text(PROMPTS[1], "very") == server.text(PROMPTS[1], "polite:-1")
    assert call(server, "DELETE", name="very")[0] == 200
    assert server.text(PROMPTS[1]) == plain


def test_only_the_key_changes_what_is_loaded(server: Server, shared: Any) -> None:
    given = {"name": "calm", "folder": "formal"}
    assert call(server, "POST", given, key=None)[0] == 403
    assert call(server, "POST", given, key="another")[0] == 403
    assert call(server, "DELETE", name="polite", key="another")[0] == 403
    open_to_all = call(server, "GET", key=None)[1]["interventions"]
    assert [known["name"] for known in open_to_all] == ["polite", "formal"]
    assert "folder" not in open_to_all[0]
    assert call(server, "GET")[1]["interventions"][0]["folder"] == "polite"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"name": "polite", "folder": "formal"}, "there is an intervention 'polite' already"),
        ({"name": "a:b", "folder": "formal"}, "name is letters, digits"),
        ({"name": "calm", "folder": "/nowhere"}, "no intervention at '/nowhere'"),
    ],
)
def test_what_cannot_be_added_is_refused(server: Server, given: dict[str, str], sentence: str) -> None:
    status, told = call(server, "POST", given)
    assert status == 400
    assert sentence in told["error"]["message"]
    assert call(server, "DELETE", name="calm")[0] == 404


def call(
    server: Server, method: str, body: dict[str, str] | None = None, name: str = "", key: str | None = KEY
) -> tuple[int, dict[str, Any]]:
    """The status and answer of the endpoint that adds and removes."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/lineas/interventions" + (f"/{name}" if name else ""),
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"} | ({"X-Lineas-Admin-Key": key} if key else {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _cached_tokens(server: Server) -> float:
    return _metric(server, "vllm:prefix_cache_hits_total")


def _in_flight(server: Server) -> float:
    return _metric(server, "vllm:num_requests_running") + _metric(server, "vllm:num_requests_waiting")


def _metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
