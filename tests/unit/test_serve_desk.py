"""The front's core with a supervisor that only notes what it is told: who is taken in, answered, or drawn again."""

import asyncio
from pathlib import Path

import httpx
import pytest
from serving import NOTE, Noting, noting_desk

from latentrt.runtime import BundleError, RequestError
from latentrt.serve import app as app_module
from latentrt.serve import desk as desk_module
from latentrt.serve.app import create_app
from latentrt.serve.desk import Desk
from latentrt.serve.messages import Accepted, Cancel, Failed, Finished, LoadFailed, Ready, Started, Submit
from latentrt.serve.refusals import QueueFullError, UnavailableError
from latentrt.serve.worker import WorkerConfig


@pytest.fixture
def desk(monkeypatch):
    return noting_desk(monkeypatch, max_queue=3)


def submit(desk, count=1, **options):
    return desk.submit(None, ("a cat",), [{"seed": number} for number in range(count)], **options)


def sent(desk, kind=Submit):
    return [message.id for message in desk._supervisor.sent if isinstance(message, kind)]


def finish(desk, ticket):
    desk._receive(Finished(ticket.id, (), None, {"denoise": 0.5}, None))


def test_the_queue_is_bounded_and_takes_all_or_none(desk):
    first = submit(desk, 2)
    with pytest.raises(QueueFullError, match="2 requests wait already; come again in 1 s"):
        submit(desk, 2)
    assert sent(desk) == [ticket.id for ticket in first]
    desk._receive(Started(first[0].id, 0.1))
    submit(desk, 2)
    assert (desk.waiting, desk.running, len(desk.live())) == (3, 1, 4)


def test_nothing_is_taken_in_before_the_models_are_there(monkeypatch):
    monkeypatch.setattr(desk_module, "Supervisor", Noting)
    with pytest.raises(UnavailableError, match="the models are being loaded"):
        submit(Desk(WorkerConfig({"m": Path("m")})))


def test_unknown_models_and_long_texts_are_refused(desk):
    with pytest.raises(RequestError, match="model 'x': not served here; this server has m"):
        desk.submit("x", ("a cat",), [{}])
    with pytest.raises(RequestError, match="prompt: 10001 characters"):
        desk.submit(None, ("a" * 10001,), [{}])


def test_answers_are_kept_where_that_was_asked(desk):
    kept, forgotten = submit(desk, kept=True)[0], submit(desk)[0]
    for ticket in (kept, forgotten):
        finish(desk, ticket)
    assert (desk.find(kept.id), desk.find(forgotten.id)) == (kept, None)
    assert desk.live() == []


def test_after_a_death_requests_are_drawn_again_once(desk):
    (ticket,) = submit(desk)
    for deaths in (0, 1):
        assert (ticket.deaths, ticket.state) == (deaths, "queued")
        desk._receive(Started(ticket.id, 0.0))
        desk._died(-9)
        desk._receive(Ready((NOTE,), 2))
    assert (ticket.state, ticket.failed.kind) == ("failed", "worker")
    assert desk._supervisor.renewed == 2
    assert desk.metrics.deaths._value.get() == 2


def test_deaths_count_for_those_that_were_read_or_drawn_alone(desk):
    drawn, waiting, read = submit(desk, 3)
    for ticket in (drawn, waiting):
        desk._receive(Accepted(ticket.id, 3, 1, 64, 64, (1,)))
    for _ in range(2):
        desk._receive(Started(drawn.id, 0.0))
        desk._died(-9)
        desk._died(-9)  # the next one, while it loads, which is nobody's fault
        desk._receive(Ready((NOTE,), 2))
    assert [ticket.state for ticket in (drawn, waiting, read)] == ["failed", "queued", "failed"]
    assert sent(desk) == [waiting.id]


def test_who_was_cancelled_is_not_drawn_again(desk):
    leaving, staying = submit(desk, 2)
    desk.cancel(leaving)
    assert sent(desk, Cancel) == [leaving.id]
    desk._died(-9)
    assert (leaving.state, staying.state) == ("cancelled", "queued")
    assert sent(desk) == [staying.id]


def test_if_no_worker_gets_ready_everybody_is_answered(desk):
    (ticket,) = submit(desk)
    desk._died(1)
    for _ in range(3):
        desk._died(1)
    assert ticket.failed == Failed(ticket.id, "worker", "no process could be started to draw this request")
    with pytest.raises(UnavailableError, match="the worker cannot be started"):
        submit(desk)
    desk._receive(Ready((NOTE,), 3))
    assert submit(desk)[0].state == "queued"


def test_a_drain_waits_for_what_is_there(desk):
    async def drain():
        desk._empty.clear()
        (ticket,) = submit(desk)
        draining = asyncio.create_task(desk.drain())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="the server is going down"):
            submit(desk)
        assert not draining.done()
        finish(desk, ticket)
        await asyncio.wait_for(draining, 5)

    asyncio.run(drain())


def test_a_bundle_that_cannot_be_loaded_is_an_error_at_the_start(monkeypatch):
    monkeypatch.setattr(desk_module, "Supervisor", Noting)

    async def start():
        made = Desk(WorkerConfig({"m": Path("m")}))
        made._receive(LoadFailed("BundleError", "it is damaged"))
        made._died(0)
        await asyncio.wait_for(made.ready(), 5)

    with pytest.raises(BundleError, match="it is damaged"):
        asyncio.run(start())


def test_a_worker_that_loads_is_not_waited_for(desk):
    asyncio.run(desk.stop())
    desk.is_ready = False
    asyncio.run(desk.stop())
    assert desk._supervisor.stops == [False, True]


def test_a_worker_that_says_nothing_is_replaced(desk, monkeypatch):
    async def wait():
        submit(desk)
        desk._heard -= desk.config.stall_seconds + 1
        watching = asyncio.create_task(desk._look_after())
        await asyncio.sleep(1.2)
        watching.cancel()

    asyncio.run(wait())
    assert desk._supervisor.killed == 1


def ask(app, *paths, **headers):
    """The status and text of each path of an app, without a server."""

    async def fetch():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(fetch())


def test_a_page_is_served_and_needs_no_key(desk, tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<title>the page</title>")
    (tmp_path / "page.js").write_text("let it = 1")
    (tmp_path / "secret.txt").write_text("x")
    monkeypatch.setattr(app_module, "PAGE", tmp_path)
    page, script, api, other = ask(create_app(desk, "key"), "/", "/page.js", "/v1/models", "/secret.txt")
    assert ("the page" in page.text, script.text) == (True, "let it = 1")
    assert (api.status_code, other.status_code) == (401, 401)
    (models,) = ask(create_app(desk, "key"), "/v1/models", Authorization="Bearer key")
    assert models.json()["data"][0]["id"] == "m"


def test_without_a_page_there_is_none(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(app_module, "PAGE", tmp_path / "none")
    (page,) = ask(create_app(desk), "/")
    assert page.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "path",
    ["/v1/x.js/../models", "/v1/models/x.png", "/metrics", "/openapi.json", "/v1/requests/x/pictures/1", "/sdapi"],
)
def test_paths_that_need_the_key(desk, path):
    assert ask(create_app(desk, "key"), path)[0].status_code == 401
