"""What clients are told, by the app without a worker behind it."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from hollow_bundles import without_engines
from serving import NOTE, noting_desk

from latentrt.serve.app import create_app
from latentrt.serve.engine import BatchEngine
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import Failed, Submit


@pytest.fixture
def desk(monkeypatch):
    return noting_desk(monkeypatch)


def send(desk, method, path, **options):
    """One request to an app, without a server."""

    async def fetch():
        transport = httpx.ASGITransport(app=create_app(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(fetch())


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("options", "message", "parameter"),
    [
        (
            {"content": '{"prompt":', "headers": JSON},
            "the body is not valid JSON: Expecting value at character 10",
            None,
        ),
        ({"content": '{"prompt": "x"}'}, "the body is not read as JSON; send Content-Type: application/json", None),
        ({"content": "", "headers": JSON}, "the body must be a JSON object", None),
        ({"json": ["x"]}, "the body must be a JSON object", None),
        ({"json": {}}, "prompt: Field required", "prompt"),
        (
            {"json": {"prompt": 5}},
            "prompt: Input should be a valid string, or: Input should be a valid list",
            "prompt",
        ),
        ({"json": {"prompt": ["x", 5]}}, "prompt: Input should be a valid string", "prompt"),
        ({"json": {"prompt": "x", "timeout": -1}}, "timeout: Input should be greater than 0", "timeout"),
        ({"json": {"prompt": "x", "image": "@@"}}, "image: not base64", "image"),
        ({"json": {"prompt": "x", "model": "y"}}, "model 'y': not served here", "model"),
    ],
)
def test_a_wrong_body_is_told_with_its_parameter(desk, options, message, parameter):
    answer = send(desk, "POST", "/v1/requests", **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, parameter)
    assert error["message"].startswith(message)


def test_a_wrong_query_is_told_with_its_parameter(desk):
    error = send(desk, "GET", f"/v1/requests/{'0' * 24}/pictures/1?format=gif").json()["error"]
    assert (error["param"], error["message"].split(":")[0]) == ("format", "format")


@pytest.mark.parametrize(
    ("kind", "message", "parameter"),
    [
        ("request", "steps 0: must be a whole number of at least 1", "steps"),
        ("request", "loras: 'style' is not loaded", "loras"),
        ("request", "the request was cancelled", None),
        ("request", "width and height do not fit", None),
        ("worker", "steps: the process died", None),
    ],
)
def test_an_error_about_a_setting_names_it(desk, kind, message, parameter):
    desk._supervisor.send = lambda sent: (
        desk._receive(Failed(sent.id, kind, message)) if isinstance(sent, Submit) else None
    )
    error = send(desk, "POST", "/v1/requests", json={"prompt": "x", "wait": True}).json()["error"]
    assert (error["message"], error["param"]) == (message, parameter)


@pytest.mark.parametrize("body", [{"scheduler": "Nope"}, {"scheduler": "Nope", "sampler_name": "Euler"}])
def test_a_schedule_type_that_is_not_known_is_an_error(desk, body):
    answer = send(desk, "POST", "/sdapi/v1/txt2img", json={"prompt": "x", **body})
    assert (answer.status_code, answer.json()["detail"][:17]) == (400, "scheduler 'Nope':")
    assert desk._supervisor.sent == []


def test_tags_of_loras_are_taken_out_of_the_prompt(monkeypatch):
    desk = noting_desk(monkeypatch, replace(NOTE, loras=("style",)))
    submitted = []

    def refuse(sent):
        if isinstance(sent, Submit):
            submitted.append(sent)
            desk._receive(Failed(sent.id, "request", "no"))

    desk._supervisor.send = refuse
    send(desk, "POST", "/sdapi/v1/txt2img", json={"prompt": "a cat<lora:style:0.8>"})
    assert (submitted[0].prompt, submitted[0].settings["loras"]) == (("a cat",), {"style": 0.8})
    assert [one["name"] for one in send(desk, "GET", "/sdapi/v1/loras").json()] == ["style"]
    assert send(desk, "GET", "/v1/models").json()["data"][0]["loras"] == ["style"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 4096, "height": 1024}, "width 4096: this build serves 512 to 1536 in steps of 8."),
        ({"loras": {"style": 1}}, "loras: 'style' is not loaded on this server; it has none"),
    ],
)
def test_clients_are_not_told_how_to_build_the_server(bundle, caplog, settings, message):
    sent = []
    engine = BatchEngine({"m": without_engines(bundle)}, ServerLimits(pixels=10**9), 4, sent.append)
    with caplog.at_level("INFO", "latentrt.serve"):
        engine.submit(Submit("a", "m", ("a cat",), settings))
    assert sent == [Failed("a", "request", message)]
    assert (str(bundle.path) in caplog.text) is ("width" in settings)
