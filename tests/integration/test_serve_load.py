"""A server under load: mixed requests, cancels and disconnects, and bodies that no client would send."""

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import eventually, served

from latentrt.runtime import Pipeline
from latentrt.serve.engine import BatchEngine
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import Failed, Finished, Stepped, Submit

pytestmark = pytest.mark.slow

PROMPTS = ("a red circle", "a green star", "a blue square", "a yellow triangle", "two white circles")
SAMPLERS = ("euler", "euler_a", "dpmpp_2m", "ddim", "heun", "unipc", "lcm", "dpmpp_2m_sde")


def mixed(number):
    """Settings of one of many requests that have little in common."""
    draw = random.Random(number)
    return {
        "steps": draw.choice([2, 3, 4, 6, 9, 14]),
        "sampler": draw.choice(SAMPLERS),
        "guidance": draw.choice([1.0, 3.0, 5.0, 7.5]),
        "guidance_rescale": draw.choice([0.0, 0.0, 0.7]),
        "guidance_interval": draw.choice([(0.0, 1.0), (0.0, 1.0), (0.2, 0.8)]),
        "width": draw.choice([48, 64]),
        "height": draw.choice([48, 64]),
        "seed": number,
    }


def test_pictures_of_200_mixed_requests_are_those_drawn_alone(demo_bundle):
    """They arrive while others are drawn, join, pause, leave, and are cancelled."""
    draw = random.Random(0)
    sent = []
    with Pipeline.load(demo_bundle, "onnxruntime", "cpu") as pipe:
        engine = BatchEngine({"demo": pipe}, ServerLimits(), 4, sent.append)
        cancelled = set()
        for number in range(200):
            engine.submit(Submit(str(number), "demo", (draw.choice(PROMPTS),), mixed(number)))
            for _ in range(draw.choice([0, 1, 2, 5])):
                engine.work()
            if draw.random() < 0.1:
                victim = str(draw.randrange(number + 1))
                if victim in engine._works:
                    cancelled.add(victim)
                engine.cancel(victim)
        while not engine.is_idle:
            engine.work()
        done = {message.id: message for message in sent if isinstance(message, Finished)}
        assert [message for message in sent if isinstance(message, Failed)] == []
        assert set(done) | cancelled == {str(number) for number in range(200)}
        assert max(message.pictures for message in sent if isinstance(message, Stepped)) > 1
        worst = 0
        for id, message in done.items():
            wanted = pipe.generate(message.metadata.prompt, **mixed(int(id))).images[0]
            worst = max(worst, np.abs(np.asarray(wanted).astype(int) - np.asarray(message.pictures[0])).max())
        assert worst <= 1


def threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def one_client(http, number, ends):
    """One request, with an end drawn by lot: fetched, cancelled, dropped on its way, or streamed."""
    draw = random.Random(number)
    body = {"prompt": draw.choice(PROMPTS), **mixed(number), "previews": draw.choice([0, 2])}
    body["guidance_interval"] = list(body["guidance_interval"])
    kind = draw.choices(["wait", "drop", "cancel", "stream"], [6, 2, 1, 1])[0]
    try:
        if kind == "wait":
            status = (await http.post("/v1/requests", json=body | {"wait": True})).status_code
            ends[status] += 1
            if status == 429:
                await asyncio.sleep(0.3)
        elif kind == "drop":
            await http.post("/v1/requests", json=body | {"wait": True}, timeout=draw.uniform(0.01, 0.3))
            ends["drop in vain"] += 1
        elif kind == "cancel":
            posted = await http.post("/v1/requests", json=body)
            ends[posted.status_code] += 1
            if posted.status_code == 202:
                await http.delete(posted.headers["location"])
        else:
            body = {"prompt": body["prompt"], "size": "64x64", "stream": True, "partial_images": 1, "steps": 3}
            async with http.stream("POST", "/v1/images/generations", json=body) as response:
                ends[response.status_code] += 1
                async for _ in response.aiter_lines():
                    if draw.random() < 0.2:
                        break
    except httpx.TimeoutException:
        ends["dropped"] += 1


async def many_clients(address, numbers):
    ends = Counter()
    room = asyncio.Semaphore(12)
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:

        async def one(number):
            async with room:
                await one_client(http, number, ends)

        await asyncio.gather(*(one(number) for number in numbers))
    return ends


def requests_ended(metrics, how="}"):
    named = {name: value for name, value in metrics.items() if name.startswith("latentrt_requests_total{")}
    return sum(value for name, value in named.items() if name.endswith(how))


def test_a_thousand_requests_with_cancels_and_disconnects(demo_bundle, tmp_path):
    with served(tmp_path, str(demo_bundle), "--max-queue", "8", "--keep", "0") as server:
        ends = asyncio.run(many_clients(server.address, range(250)))
        eventually(lambda: server.metrics()["latentrt_requests_running"] == 0)
        pids = (server.process.pid, server.worker())
        before = [(threads(pid), resident(pid)) for pid in pids]
        ends += asyncio.run(many_clients(server.address, range(250, 1000)))
        eventually(lambda: server.metrics()["latentrt_requests_running"] == 0)
        metrics = server.metrics()
        after = [(threads(pid), resident(pid)) for pid in pids]
        assert set(ends) <= {200, 202, 429, "dropped", "drop in vain"}
        assert (metrics["latentrt_queue_length"], metrics["latentrt_worker_deaths_total"]) == (0, 0)
        rejected = metrics.get("latentrt_rejected_total{queue full}", 0)
        # A client that dropped its connection may have done so before its body had arrived.
        assert 1000 - ends["dropped"] <= requests_ended(metrics) + rejected <= 1000
        assert rejected >= ends[429] > 0
        assert metrics["latentrt_joins_total"] >= metrics["latentrt_leaves_total"] > 0
        finished = requests_ended(metrics, ",finished}")
        assert finished == metrics["latentrt_request_seconds_count"] >= ends[200] * 0.8
        for (threads_before, bytes_before), (threads_after, bytes_after) in zip(before, after, strict=True):
            assert threads_after <= threads_before + 4  # asyncio's own pool grows to its size
            assert bytes_after < 1.25 * bytes_before


def test_no_body_makes_an_internal_error(demo_bundle, tmp_path):
    options = ("--max-queue", "8", "--max-steps", "40", "--max-pixels", "20000")
    with served(tmp_path, str(demo_bundle), *options) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json"]
        command += ["--checks", "not_a_server_error", "--max-examples", "20", "--request-timeout", "60", "--seed", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=800)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        statuses = {line["status"] for line in server.log() if "status" in line}
        assert {200, 400, 404} <= statuses
        assert all(status < 500 for status in statuses)
