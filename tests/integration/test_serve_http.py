"""A running server, spoken to by the clients that people have: openai's own package, and httpx as curl would."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from loras import Change, write_lora
from PIL import Image, ImageDraw
from serving import eventually, served

from latentrt.engine.build import build_engines
from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.record.picture_files import read_request

SMALL = {"steps": 3, "seed": 5, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def server(demo_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    options = ("--max-queue", "12", "--max-pixels", str(144 * 144), "--max-body", "2", "--max-prompt", "2000")
    with served(folder, str(demo_bundle), *options) as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def api(server):
    made = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="Euler", steps=3)
    yield made
    made.session.close()


@pytest.fixture(scope="module")
def pipe(demo_bundle):
    with Pipeline.load(demo_bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def encoded(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def base64_png(image):
    return base64.b64encode(encoded(image)).decode()


def difference(one, other):
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def photo(size=64):
    image = Image.new("RGB", (size, size), "navy")
    ImageDraw.Draw(image).ellipse((8, 8, size - 8, size - 8), fill="orange")
    return image


def draw(http, **body):
    return http.post("/v1/requests", json={"prompt": "a red circle", "wait": True, **SMALL, **body})


def events(response):
    """(name, data) of every server-sent event."""
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


class TestOurOwn:
    def test_a_picture_is_the_runtimes(self, http, pipe, tmp_path):
        answer = draw(http, guidance=4.0, negative="blurry").json()
        assert (answer["state"], answer["step"], answer["seeds"], answer["width"]) == ("finished", 3, [5], 64)
        wanted = pipe.generate("a red circle", guidance=4.0, negative="blurry", **SMALL).images[0]
        data = base64.b64decode(answer["data"][0]["b64_json"])
        assert difference(Image.open(io.BytesIO(data)), wanted) <= 1
        (tmp_path / "a.png").write_bytes(data)
        assert read_request(tmp_path / "a.png").settings["negative"] == "blurry"

    def test_submit_look_and_fetch(self, http):
        posted = http.post("/v1/requests", json={"prompt": ["a red circle", "a blue square"], **SMALL})
        assert posted.status_code == 202
        place = posted.headers["location"]
        assert posted.json()["steps"] == 3
        found = eventually(lambda: (one := http.get(place).json())["state"] == "finished" and one)
        assert found["pictures"] == len(found["data"]) == 2
        picture = http.get(f"{place}/pictures/2", params={"format": "webp", "quality": 50})
        assert (picture.headers["content-type"], Image.open(io.BytesIO(picture.content)).format) == (
            "image/webp",
            "WEBP",
        )
        assert http.get(f"{place}/pictures/3").status_code == 404

    def test_every_kind_of_setting(self, http, pipe):
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
        settings = {
            "guidance": [4.0],
            "guidance_interval": [0.0, 0.8],
            "schedule": {"use_karras_sigmas": True},
            "sampler": "dpmpp_2m",
            "strength": 0.9,
            "paste_back": True,
            "original_size": [64, 64],
            "negative_conditioning": {"original": [32, 32]},
        }
        answer = draw(http, image=base64_png(photo()), mask="data:image/png;base64," + base64_png(mask), **settings)
        assert answer.status_code == 200, answer.text
        drawn = opened(answer.json()["data"][0]["b64_json"])
        assert difference(np.asarray(drawn)[:, 32:], np.asarray(photo())[:, 32:]) == 0
        assert difference(drawn, photo()) > 20

    def test_latents_go_out_and_come_in(self, http):
        latents = draw(http, decode=False).json()["latents"]
        assert np.load(io.BytesIO(base64.b64decode(latents))).shape == (1, 4, 8, 8)
        body = {"prompt": "a red circle", "latents": latents, "strength": 0.5, "steps": 4, "wait": True}
        assert http.post("/v1/requests", json=body).json()["step"] == 2

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"step": 3}, "step: no such setting, the nearest is steps"),
            ({"cfg_scale": 3}, "cfg_scale: it is called guidance here"),
            ({"steps": "3"}, "steps '3': must be a whole number of at least 1"),
            ({"width": 4000, "height": 4000}, "16000000 pixels; this server draws up to 20736"),
            ({"steps": 500}, "500 evaluations of the U-Net; this server allows 200"),
            ({"images": 100}, "images 100: this server draws up to 16"),
            ({"prompt": "x" * 3000}, "prompt: 3000 characters; this server takes up to 2000"),
            ({"negative": "x" * 3000}, "negative: 3000 characters"),
            ({"prompt": []}, "prompt: an empty list"),
            ({"prompt": 3}, "prompt"),
            ({"timeout": -1}, "timeout: Input should be greater than 0"),
            ({"model": "other"}, "model 'other': not served here; this server has"),
            ({"image": "@@"}, "image: not base64"),
            ({"image": base64.b64encode(b"GIF89a").decode()}, "image: not readable as a picture"),
            ({"image": 5}, "image: must be a base64 text"),
            ({"image": base64_png(Image.new("L", (1000, 1000)))}, "image: 1000 x 1000 pixels; this server takes up to"),
            ({"latents": base64.b64encode(b"\x93NUMPY\x01\x00").decode()}, "latents: not an .npy file"),
            ({"negative_conditioning": {"size": 3}}, "negative_conditioning: .*; it takes original, crop"),
        ],
    )
    def test_what_is_wrong_is_said(self, http, body, message):
        answer = draw(http, **body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert re.search(message, error["message"])

    def test_a_decompression_bomb_is_not_unpacked(self, http):
        bomb = base64_png(Image.new("1", (20000, 20000)))
        assert len(bomb) < 200_000
        answer = draw(http, image=bomb)
        assert (answer.status_code, "pixels; this server takes up to" in answer.json()["error"]["message"]) == (
            400,
            True,
        )

    def test_a_body_that_is_too_large_is_refused(self, http):
        answer = draw(http, image="A" * (3 * 2**20))
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            413,
            "the body is too large; this server takes up to 2097152 bytes",
        )
        chunks = (b"x" * 2**16 for _ in range(64))
        assert http.post("/v1/requests", content=chunks).status_code == 413

    def test_events(self, http):
        posted = http.post("/v1/requests", json={"prompt": "a red circle", **SMALL, "steps": 60, "previews": 3}).json()
        with http.stream("GET", f"/v1/requests/{posted['id']}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            seen = list(events(response))
        names = [name for name, _ in seen]
        assert names.count("preview") == 3
        assert names[-1] == "finished"
        steps = [data["step"] for name, data in seen if name == "progress"]
        assert steps == sorted(steps)
        assert opened(next(data for name, data in seen if name == "preview")["data"][0]["b64_json"]).size == (8, 8)
        assert opened(seen[-1][1]["data"][0]["b64_json"]).size == (64, 64)

    def test_cancel(self, http):
        posted = http.post("/v1/requests", json={"prompt": "a red circle", **SMALL, "steps": 200}).json()
        assert http.delete(f"/v1/requests/{posted['id']}").json()["state"] == "cancelled"
        assert http.get(f"/v1/requests/{posted['id']}").json()["step"] < 200
        with http.stream("GET", f"/v1/requests/{posted['id']}/events") as response:
            assert [name for name, _ in events(response)] == ["cancelled"]

    def test_a_client_that_goes_takes_its_request_along(self, server, http):
        body = json.dumps({"prompt": "a red circle", **SMALL, "steps": 200, "wait": True}).encode()
        before = server.metrics().get(f"latentrt_requests_total{{{model(http)},cancelled}}", 0)
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            head = f"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            line.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            eventually(lambda: server.metrics()["latentrt_requests_running"] == 1)
        after = f"latentrt_requests_total{{{model(http)},cancelled}}"
        eventually(lambda: server.metrics().get(after, 0) == before + 1)

    def test_a_timeout(self, http):
        answer = draw(http, steps=200, timeout=0.05)
        assert answer.status_code == 408
        assert "not drawn in time" in answer.json()["error"]["message"]

    def test_a_full_queue_says_when_to_come_again(self, http, server):
        places, refused = [], None
        for _ in range(60):
            posted = http.post("/v1/requests", json={"prompt": "a red circle", **SMALL, "steps": 150})
            if posted.status_code == 429:
                refused = posted
                break
            places.append(posted.headers["location"])
        for place in places:
            http.delete(place)
        assert refused is not None
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert server.metrics()["latentrt_rejected_total{queue full}"] >= 1

    def test_what_is_not_there(self, http):
        assert http.get("/v1/requests/none").json()["error"]["message"].startswith("request none: not here")
        assert http.get("/nothing").status_code == 404
        assert http.put("/v1/requests").status_code == 405

    def test_the_schema_has_every_setting(self, http):
        from latentrt.runtime.request.settings import SETTINGS

        schema = http.get("/openapi.json").json()
        fields = schema["components"]["schemas"]["Body"]["properties"]
        assert set(SETTINGS) <= set(fields)
        assert fields["steps"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
        assert fields["steps"]["description"].startswith("Steps of the whole schedule.")


def model(http):
    return http.get("/v1/models").json()["data"][0]["id"]


class TestOpenAI:
    def test_generate(self, client, pipe):
        answer = client.images.generate(
            prompt="a red circle", size="64x64", n=2, extra_body={"seed": 5, "steps": 3, "guidance": 4.0}
        )
        assert (answer.size, answer.output_format, len(answer.data)) == ("64x64", "png", 2)
        for seed, one in zip((5, 6), answer.data, strict=True):
            wanted = pipe.generate("a red circle", **(SMALL | {"seed": seed}), guidance=4.0).images[0]
            assert difference(opened(one.b64_json), wanted) <= 1

    @pytest.mark.parametrize(("format", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
    def test_formats(self, client, format, name):
        answer = client.images.generate(
            prompt="a red circle", size="64x64", output_format=format, output_compression=60, extra_body={"steps": 2}
        )
        assert opened(answer.data[0].b64_json).format == name

    def test_urls(self, client):
        answer = client.images.generate(
            prompt="a red circle", size="64x64", response_format="url", extra_body={"steps": 2}
        )
        assert Image.open(io.BytesIO(httpx.get(answer.data[0].url).content)).size == (64, 64)

    def test_streaming(self, client):
        stream = client.images.generate(
            prompt="a red circle", size="96x96", stream=True, partial_images=2, extra_body={"steps": 12}
        )
        seen = list(stream)
        kinds = [one.type for one in seen]
        assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        assert [one.partial_image_index for one in seen[:2]] == [0, 1]
        assert {opened(one.b64_json).size for one in seen} == {(96, 96)}
        assert seen[-1].usage.total_tokens == 0

    def test_edit_where_the_mask_is_transparent(self, client):
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
        answer = client.images.edit(
            image=("p.png", encoded(photo())),
            mask=("m.png", encoded(mask)),
            prompt="a green star",
            extra_body={"steps": 4, "seed": 3},
        )
        drawn = np.asarray(opened(answer.data[0].b64_json))
        assert difference(drawn[:, 32:], np.asarray(photo())[:, 32:]) == 0
        assert difference(drawn[:, :32], np.asarray(photo())[:, :32]) > 20

    def test_edit_by_the_pictures_own_transparency_and_streaming(self, client):
        image = photo().convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 32, 64))
        stream = client.images.edit(
            image=("p.png", encoded(image)), prompt="a star", stream=True, partial_images=1, extra_body={"steps": 4}
        )
        assert [one.type for one in stream] == ["image_edit.partial_image", "image_edit.completed"]

    def test_edit_without_a_mask_draws_all_of_it_at_a_size_that_is_served(self, client):
        answer = client.images.edit(image=("p.png", encoded(photo(70))), prompt="a star", extra_body={"steps": 4})
        assert opened(answer.data[0].b64_json).size == (72, 72)

    def test_models(self, client, demo_bundle):
        (found,) = client.models.list().data
        assert (found.id, client.models.retrieve(found.id).owned_by) == (demo_bundle.name, "latentrt")
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.models.retrieve("gpt-image-1")

    @pytest.mark.parametrize(
        ("body", "parameter", "message"),
        [
            ({"extra_body": {"colour": 1}}, "colour", "Unknown parameter: 'colour'."),
            ({"n": 11}, "n", "n 11: must be a whole number from 1 to 10"),
            ({"size": "big"}, "size", "size 'big': must be auto, or WIDTHxHEIGHT"),
            ({"background": "transparent"}, "background", "must be one of auto, opaque"),
            ({"size": "65x64"}, "size", "width 65: must be a multiple of 8"),
            ({"extra_body": {"stream": "yes"}}, "stream", "must be true or false"),
        ],
    )
    def test_errors(self, client, body, parameter, message):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.images.generate(prompt="a red circle", **body)
        assert caught.value.param == parameter

    def test_a_body_that_nests_too_deeply(self, http):
        answer = http.post("/v1/images/generations", content=b"[" * 100_000)
        assert (answer.status_code, "could not parse" in answer.json()["error"]["message"]) == (400, True)

    def test_errors_of_edits(self, client):
        with pytest.raises(openai.BadRequestError, match="no alpha channel"):
            client.images.edit(image=("p.png", encoded(photo())), mask=("m.png", encoded(photo())), prompt="x")
        with pytest.raises(openai.BadRequestError, match="this server edits one picture"):
            client.images.edit(image=[("p.png", encoded(photo()))] * 2, prompt="x")
        with pytest.raises(openai.NotFoundError, match="'gpt-image-1' does not exist"):
            client.images.edit(image=("p.png", encoded(photo())), prompt="x", model="gpt-image-1")

    def test_a_stream_whose_client_goes(self, client, server):
        before = server.metrics()["latentrt_step_seconds_count"]
        stream = client.images.generate(
            prompt="a red circle", size="64x64", stream=True, partial_images=3, extra_body={"steps": 200}
        )
        next(iter(stream))
        stream.close()
        eventually(lambda: server.metrics()["latentrt_requests_running"] == 0)
        assert server.metrics()["latentrt_step_seconds_count"] - before < 190


class TestWebInterface:
    def test_txt2img(self, http, pipe):
        body = {"prompt": "a red circle", "steps": 3, "seed": 5, "cfg_scale": 4, "width": 64, "height": 64}
        body |= {"batch_size": 2, "sampler_name": "Euler a", "unknown_field": 1, "negative_prompt": "blurry"}
        answer = http.post("/sdapi/v1/txt2img", json=body).json()
        info = json.loads(answer["info"])
        assert (info["all_seeds"], info["sampler_name"]) == ([5, 6], "Euler a")
        for seed, image in zip((5, 6), answer["images"], strict=True):
            settings = SMALL | {"seed": seed, "sampler": "euler_a", "guidance": 4, "negative": "blurry"}
            assert difference(opened(image), pipe.generate("a red circle", **settings).images[0]) <= 1
        assert "Steps: 3, Sampler: Euler a" in info["infotexts"][0]

    def test_a_variation_seed(self, http, pipe):
        body = {"prompt": "a red circle", "steps": 3, "seed": 5, "width": 64, "height": 64, "cfg_scale": 4}
        body |= {"subseed": 9, "subseed_strength": 0.5}
        image = http.post("/sdapi/v1/txt2img", json=body).json()["images"][0]
        wanted = pipe.generate("a red circle", **SMALL, guidance=4, variation_seed=9, variation_strength=0.5).images[0]
        assert difference(opened(image), wanted) <= 1

    def test_img2img_with_a_mask(self, http):
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
        body = {"init_images": [base64_png(photo())], "prompt": "a star", "steps": 4, "denoising_strength": 1}
        body |= {"mask": base64_png(mask)}
        drawn = np.asarray(opened(http.post("/sdapi/v1/img2img", json=body).json()["images"][0]))
        assert difference(drawn[:, 32:], np.asarray(photo())[:, 32:]) == 0
        inverted = http.post("/sdapi/v1/img2img", json=body | {"inpainting_mask_invert": 1}).json()["images"][0]
        assert difference(np.asarray(opened(inverted))[:, :32], np.asarray(photo())[:, :32]) == 0

    def test_progress_and_interrupt(self, http, server):
        answers = []
        body = {"prompt": "a red circle", "steps": 200, "width": 96, "height": 96}
        drawing = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.address}/sdapi/v1/txt2img", json=body, timeout=60))
        )
        drawing.start()
        found = eventually(lambda: (one := http.get("/sdapi/v1/progress").json())["current_image"] and one)
        assert 0 < found["progress"] < 1
        assert found["state"]["sampling_steps"] == 200
        assert opened(found["current_image"]).size == (12, 12)
        assert http.post("/sdapi/v1/interrupt").status_code == 200
        drawing.join(30)
        assert (answers[0].status_code, answers[0].json()["images"]) == (200, [])
        assert http.get("/sdapi/v1/progress").json()["progress"] == 0

    def test_lists(self, http):
        samplers = http.get("/sdapi/v1/samplers").json()
        assert {"name": "DPM++ 2M", "aliases": ["dpmpp_2m"], "options": {}} in samplers
        (found,) = http.get("/sdapi/v1/sd-models").json()
        assert found["title"] == http.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
        assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": found["title"]}).status_code == 200
        answer = http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "none"})
        assert (answer.status_code, "model 'none' not found" in answer.json()["detail"]) == (400, True)
        assert "Karras" in [one["label"] for one in http.get("/sdapi/v1/schedulers").json()]

    def test_png_info(self, http):
        body = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64}
        image = http.post("/sdapi/v1/txt2img", json=body).json()["images"][0]
        found = http.post("/sdapi/v1/png-info", json={"image": image}).json()
        assert found["info"].startswith("a red circle\nSteps: 2")
        assert found["parameters"]["Prompt"] == "a red circle"
        assert found["parameters"]["Size"] == "64x64"
        assert http.post("/sdapi/v1/png-info", json={"image": base64_png(photo())}).json()["info"] == ""

    def test_errors(self, http):
        answer = http.post("/sdapi/v1/txt2img", json={"prompt": "x", "enable_hr": True})
        assert (answer.status_code, answer.json()["detail"]) == (400, "enable_hr: not served here; leave it out")
        assert answer.json()["error"] == "HTTPException"
        answer = http.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": "many"})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "steps"])
        answer = http.post("/sdapi/v1/img2img", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["detail"]) == (404, "Init image not found")
        answer = http.post("/sdapi/v1/txt2img", json={"prompt": "x", "sampler_name": "Fast"})
        assert "sampler_name 'Fast': must be one of DDIM" in answer.json()["detail"]


class TestWebInterfaceClient:
    """The package webuiapi, as its own documentation uses it."""

    def test_txt2img(self, api, pipe):
        found = api.txt2img(prompt="a red circle", seed=5, cfg_scale=4, width=64, height=64, n_iter=2)
        wanted = pipe.generate("a red circle", guidance=4, sampler="euler", **SMALL).images[0]
        assert difference(found.image, wanted) <= 1
        assert (len(found.images), found.info["all_seeds"]) == (2, [5, 6])

    def test_img2img_and_inpainting(self, api):
        found = api.img2img(images=[photo()], prompt="a star", width=64, height=64, denoising_strength=0.5)
        assert found.image.size == (64, 64)
        mask = Image.new("RGB", (64, 64))
        ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill="white")
        settings = {"prompt": "a star", "width": 64, "height": 64, "denoising_strength": 1.0}
        found = api.img2img(images=[photo()], mask_image=mask, inpainting_mask_invert=0, **settings)
        assert difference(np.asarray(found.image)[:, 32:], np.asarray(photo())[:, 32:]) == 0

    def test_the_rest(self, api):
        assert "Euler" in [one["name"] for one in api.get_samplers()]
        assert "Karras" in [one["label"] for one in api.get_schedulers()]
        title = api.get_sd_models()[0]["title"]
        assert api.get_options()["sd_model_checkpoint"] == title
        api.set_options({"sd_model_checkpoint": title})
        assert api.get_progress()["progress"] == 0
        api.interrupt()
        image = api.txt2img(prompt="a red circle", steps=2, width=64, height=64).image
        assert api.png_info(image).info.startswith("a red circle")


class TestOperations:
    def test_probes(self, http):
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json()["status"] == "ready"

    def test_metrics_add_up(self, http, server):
        before = server.metrics()
        draw(http, steps=7)
        draw(http, steps=2, images=2)
        after = server.metrics()
        grown = {name: after[name] - before.get(name, 0) for name in after}
        assert grown["latentrt_step_seconds_count"] == 9
        assert grown["latentrt_batch_pictures_sum"] == 7 + 2 * 2
        assert grown[f"latentrt_requests_total{{{model(http)},finished}}"] == 2
        assert grown["latentrt_request_seconds_count"] == grown["latentrt_wait_seconds_count"] == 2
        assert grown["latentrt_stage_seconds_total{denoise}"] > 0
        assert (after["latentrt_queue_length"], after["latentrt_requests_running"]) == (0, 0)

    def test_ids_and_logs(self, http, server):
        answer = http.get("/healthz", headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert len(http.get("/healthz", headers={"x-request-id": "bad;id"}).headers["x-request-id"]) == 24
        drawn = draw(http)
        id = drawn.json()["id"]
        line = eventually(lambda: next((one for one in server.log() if one.get("request") == id), None))
        assert (line["state"], line["size"], line["steps"], set(line["stages"])) == (
            "finished",
            "64x64",
            3,
            {"text", "denoise", "decode"},
        )
        assert line["http_request"] == drawn.headers["x-request-id"]
        assert next(one for one in server.log() if one.get("http_request") == "mine-1")["status"] == 200

    @pytest.mark.slow
    def test_a_worker_that_dies_is_replaced_and_its_requests_are_drawn_again(self, http, server, pipe):
        body = {"prompt": "a red circle", **SMALL, "steps": 150}
        place = http.post("/v1/requests", json=body).headers["location"]
        eventually(lambda: http.get(place).json()["step"] > 3)
        before = server.worker()
        os.kill(before, signal.SIGKILL)
        found = eventually(lambda: (one := http.get(place).json())["state"] == "finished" and one, 60)
        wanted = pipe.generate("a red circle", **(SMALL | {"steps": 150})).images[0]
        assert difference(opened(found["data"][0]["b64_json"]), wanted) <= 1
        assert server.worker() != before
        assert server.metrics()["latentrt_worker_deaths_total"] >= 1

    @pytest.mark.slow
    def test_a_request_under_which_two_workers_die_is_answered(self, http, server):
        body = {"prompt": "a red circle", **SMALL, "steps": 200, "width": 128, "height": 128}
        place = http.post("/v1/requests", json=body).headers["location"]
        for _ in range(2):
            eventually(lambda: http.get(place).json()["step"] > 2, 60)
            worker = server.worker()
            os.kill(worker, signal.SIGKILL)
            eventually(lambda worker=worker: http.get(place).json()["state"] == "failed" or server.worker() != worker)
        found = http.get(place).json()
        assert found["state"] == "failed"
        assert found["error"]["message"] == "the process that drew this request has died twice"
        eventually(lambda: http.get("/readyz").status_code == 200, 60)
        assert draw(http).status_code == 200


@pytest.mark.slow
def test_a_drain_finishes_what_is_there_and_refuses_what_comes(demo_bundle, tmp_path):
    with served(tmp_path, str(demo_bundle)) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        body = {"prompt": "a red circle", **SMALL, "steps": 200, "width": 96, "height": 96}
        place = http.post("/v1/requests", json=body).headers["location"]
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: http.get("/readyz").status_code == 503)
        refused = http.post("/v1/requests", json=body)
        assert (refused.status_code, "going down" in refused.json()["error"]["message"]) == (503, True)
        assert int(refused.headers["retry-after"]) > 0
        found = eventually(lambda: (one := http.get(place).json())["state"] == "finished" and one)
        assert opened(found["data"][0]["b64_json"]).size == (96, 96)
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_ctrl_c_while_it_loads_ends_it_at_once(demo_bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from latentrt.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(demo_bundle), "--port", str(port)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        eventually(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 0
    said = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines() if line[0] == "{"]
    assert ("stopped while loading" in said, "ready" in said, "draining" in said) == (True, False, False)


def answers(address):
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_key(demo_bundle, tmp_path):
    with served(tmp_path, str(demo_bundle), LATENTRT_API_KEY="secret-ключ") as server:
        with httpx.Client(base_url=server.address, timeout=60) as http:
            assert http.get("/readyz").status_code == 200
            for path in ("/v1/models", "/metrics", "/sdapi/v1/options", "/openapi.json"):
                assert http.get(path).status_code == 401
                wrong = http.get(path, headers={"Authorization": "Bearer secret"})
                assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
            right = {"Authorization": "Bearer secret-ключ".encode()}
            assert http.get("/v1/models", headers=right).status_code == 200
            basic = base64.b64encode("any:secret-ключ".encode()).decode()
            assert http.get("/sdapi/v1/options", headers={"Authorization": f"Basic {basic}"}).status_code == 200
            body = {"prompt": "a red circle", "wait": True, **SMALL}
            id = http.post("/v1/requests", json=body, headers=right).json()["id"]
            assert http.get(f"/v1/requests/{id}/pictures/1").status_code == 200
            assert http.get(f"/v1/requests/{id}").status_code == 401
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client.models.list()


def run_cli(*arguments):
    code = "from latentrt.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "serve", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_an_address_in_use_is_named(demo_bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_cli(str(demo_bundle), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use. Name another address" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_bundle_that_cannot_be_loaded_ends_the_server(demo_bundle, tmp_path):
    done = run_cli(str(demo_bundle), "--port", "0", "--build", "none")
    assert done.returncode == 1
    assert "none" in done.stderr
    done = run_cli(str(tmp_path), "--port", "0")
    assert (done.returncode, "not a bundle" in done.stderr) == (1, True)
    done = run_cli(str(demo_bundle), str(demo_bundle), "--port", "0")
    assert "two bundles of this name" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_lora_of_the_server_is_used_by_every_api(demo_bundle, tmp_path):
    bundle = Bundle.open(shutil.copytree(demo_bundle, tmp_path / "demo"))
    build_engines(bundle, "onnxruntime", lora=LoraSlots(rank=4))
    block = "up_blocks.0.attentions.1.transformer_blocks.0.attn2"
    changes = tuple(Change("unet", f"{block}.{layer}", (96, 160)) for layer in ("to_k", "to_v"))
    file = write_lora(tmp_path / "style.safetensors", "peft", changes, rank=4)
    settings = SMALL | {"guidance": 4.0, "sampler": "euler"}
    with Pipeline.load(bundle, "onnxruntime", "cpu", lora_rank=4) as pipe:
        pipe.load_lora(file)
        wanted = pipe.generate("a red circle", loras={"style": 3}, **settings).images[0]
        assert difference(wanted, pipe.generate("a red circle", **settings).images[0]) > 20
    with (
        served(tmp_path, str(bundle.path), "--lora", str(file)) as server,
        httpx.Client(base_url=server.address, timeout=60) as http,
    ):
        ours = draw(http, loras={"style": 3}, **settings).json()["data"][0]["b64_json"]
        body = settings | {"prompt": "a red circle", "size": "64x64", "loras": {"style": 3}}
        del body["width"], body["height"]
        theirs = http.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        body = {"prompt": "a red circle<lora:style:3>", "steps": 3, "seed": 5, "width": 64, "height": 64}
        body |= {"cfg_scale": 4, "sampler_name": "Euler"}
        tagged = http.post("/sdapi/v1/txt2img", json=body).json()["images"][0]
        assert [difference(opened(one), wanted) <= 1 for one in (ours, theirs, tagged)] == [True] * 3
        assert http.get("/v1/models").json()["data"][0]["loras"] == ["style"]
        error = draw(http, loras={"ink": 1}).json()["error"]
        assert error["message"] == "loras: 'ink' is not loaded on this server; it has style"
