"""Parts of a server that need no pipeline: tickets, pictures, limits, bodies, logs."""

import asyncio
import base64
import io
import json
import logging
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from serving import NOTE

from latentrt.runtime import RequestError
from latentrt.runtime.lora.mix import read_loras
from latentrt.serve.http.errors import ParameterError
from latentrt.serve.http.openai_body import edit_settings, read_order, typed
from latentrt.serve.http.webui_body import Txt2Img, loras_of, seeds_of, settings_of, without_tags
from latentrt.serve.limits import ServerLimits
from latentrt.serve.logs import JsonLines
from latentrt.serve.messages import Accepted, Cancelled, Failed, Preview, Started, Stepped, Submit
from latentrt.serve.pictures import decode_base64, encode_picture, has_alpha, read_latents, read_picture, write_latents
from latentrt.serve.ticket import KeptTickets, Ticket

LIMITS = ServerLimits(pixels=100 * 100, pictures=3, prompt=20)


def ticket(id="a", seconds=None):
    return Ticket(Submit(id, "m", ("a cat",), {}, seconds))


def stepped(done):
    return Stepped("lane", 1, 0.1, {"a": done}, 1, 0)


class TestTickets:
    def test_a_life(self):
        one = ticket()
        for message, state, step in (
            (Accepted("a", 9, 1, 64, 64, (3,)), "queued", 0),
            (Started("a", 0.5), "running", 0),
            (stepped(4), "running", 4),
            (Cancelled("a"), "cancelled", 4),
            (stepped(5), "cancelled", 4),
            (Failed("a", "worker", "late"), "cancelled", 4),
        ):
            one.take(message)
            assert (one.state, one.step) == (state, step)
        assert (one.steps, one.waited, one.is_done, one.failed) == (9, 0.5, True, None)
        assert one.log_fields()["size"] == "64x64"

    def test_starting_over_forgets_what_was_drawn(self):
        one = ticket()
        one.take(Started("a", 0.5))
        one.take(stepped(4))
        one.take(Preview("a", 4, ()))
        one.start_over()
        assert (one.state, one.step, one.previews) == ("queued", 0, [])

    def test_the_time_that_is_left(self):
        assert ticket().left().seconds is None
        one = ticket(seconds=10.0)
        one.came -= 4
        assert one.left().seconds == pytest.approx(6, abs=0.1)
        one.came -= 40
        assert one.left().seconds == 0

    def test_watchers_see_the_last_state_and_the_end(self):
        async def watch():
            one, seen = ticket(), []

            async def look():
                async for _ in one.changes():
                    seen.append((one.state, one.step))
                    await asyncio.sleep(0.01)

            looking = asyncio.create_task(look())
            await asyncio.sleep(0.001)
            one.take(Started("a", 0.0))
            for step in range(1, 50):
                one.take(stepped(step))
            await asyncio.sleep(0.03)
            one.take(Cancelled("a"))
            await asyncio.wait_for(looking, 5)
            return seen

        seen = asyncio.run(watch())
        assert seen[0] == ("queued", 0)
        assert ("running", 49) in seen
        assert seen[-1] == ("cancelled", 49)
        assert len(seen) < 10

    def test_a_quiet_ticket_comes_again(self):
        async def count():
            one, times = ticket(), 0
            async for _ in one.changes(0.01):
                times += 1
                if times == 3:
                    return times

        assert asyncio.run(asyncio.wait_for(count(), 5)) == 3

    def test_answers_are_kept_for_a_while(self):
        kept = KeptTickets(100, 2)
        tickets = [ticket(f"{number}") for number in range(3)]
        for one in tickets:
            one.take(Cancelled(one.id))
            kept.add(one)
        assert [kept.find(one.id) for one in tickets] == [None, *tickets[1:]]
        tickets[1].ended = time.monotonic() - 101
        kept.forget_old()
        assert [kept.find(one.id) for one in tickets] == [None, None, tickets[2]]


def png(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class TestPictures:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
    def test_formats_that_are_read(self, format):
        assert read_picture("image", png(Image.new("RGB", (9, 7), "red"), format), LIMITS).size == (9, 7)

    @pytest.mark.parametrize("format", ["PPM", "ICO", "PCX", "TGA"])
    def test_formats_that_are_not(self, format):
        with pytest.raises(RequestError, match="image: not readable as a picture"):
            read_picture("image", png(Image.new("RGB", (16, 16)), format), LIMITS)

    def test_too_many_pixels_are_refused_before_they_are_unpacked(self, monkeypatch):
        data = png(Image.new("L", (101, 100)))
        monkeypatch.setattr(PngImageFile, "load", None)
        with pytest.raises(RequestError, match="mask: 101 x 100 pixels; this server takes up to 10000"):
            read_picture("mask", data, LIMITS)

    def test_what_is_no_picture_is_said_without_pythons_names(self):
        with pytest.raises(RequestError) as caught:
            read_picture("image", b"hello", LIMITS)
        assert str(caught.value) == "image: not readable as a picture; give a PNG, JPEG or WebP"

    def test_half_a_picture(self):
        data = png(Image.effect_noise((60, 60), 50))
        with pytest.raises(RequestError, match="not readable as a picture"):
            read_picture("image", data[: len(data) // 2], LIMITS)

    @pytest.mark.parametrize("text", ["aGk=", " aG\nk= ", "data:image/png;base64,aGk=", "data:;base64,aGk="])
    def test_base64(self, text):
        assert decode_base64("image", text) == b"hi"

    @pytest.mark.parametrize("text", ["aGk", "a*", "data:image/png,aGk=", 5, None, ["aGk="]])
    def test_no_base64(self, text):
        with pytest.raises(RequestError, match="image: "):
            decode_base64("image", text)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_alpha(self, mode):
        assert has_alpha(Image.new(mode, (4, 4)))
        assert not has_alpha(Image.new("RGB", (4, 4)))

    @pytest.mark.parametrize("quality", [0, 50, 100])
    @pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
    def test_files_that_are_answered(self, format, quality):
        data = encode_picture(Image.new("RGB", (8, 8), "red"), format, quality)
        assert Image.open(io.BytesIO(data)).format == format.upper()


class TestLatents:
    def test_there_and_back(self):
        latents = np.random.default_rng(0).standard_normal((1, 4, 6, 8)).astype(np.float32)
        assert np.array_equal(read_latents(write_latents(latents), LIMITS), latents)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x93NUMPY\x01\x00",
            write_latents(np.zeros((2, 2), np.float32))[:-1],
            write_latents(np.zeros((2, 2), np.complex64)),
            write_latents(np.zeros((2, 2), np.float32)).replace(b"(2, 2)", b"(9999999999, 2)"),
        ],
    )
    def test_no_array(self, data):
        with pytest.raises(RequestError, match=r"latents: not an \.npy file of numbers"):
            read_latents(data, LIMITS)

    def test_nothing_is_unpickled(self):
        file = io.BytesIO()
        np.save(file, np.array([object()]), allow_pickle=True)
        with pytest.raises(RequestError, match="latents: not an"):
            read_latents(file.getvalue(), LIMITS)

    def test_too_large(self):
        with pytest.raises(RequestError, match="too large for this server"):
            read_latents(write_latents(np.zeros((4, 100, 100), np.float32)), LIMITS)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (("a",) * 4, {}, "prompt: 4 texts; this server draws up to 3 pictures at once"),
        (("a" * 21,), {}, "prompt: 21 characters; this server takes up to 20"),
        (("a",), {"negative": ["a", "b" * 30]}, "negative: 30 characters"),
        (("a",), {"prompt_2": "b" * 30}, "prompt_2: 30 characters"),
    ],
)
def test_texts_that_are_too_long(prompt, settings, message):
    with pytest.raises(RequestError, match=message):
        LIMITS.check_texts(prompt, settings)


class TestOrders:
    def test_defaults(self):
        order = read_order({"prompt": "a cat", "n": None})
        assert (order.n, order.size, order.format, order.quality, order.stream, order.as_url) == (
            1,
            None,
            "png",
            100,
            False,
            False,
        )

    def test_values(self):
        order = read_order(
            {"prompt": "a", "n": 3, "size": "64x32", "output_format": "webp", "seed": 5, "quality": "hd"}
        )
        assert (order.n, order.size, order.format, order.settings) == (3, (64, 32), "webp", {"seed": 5})

    @pytest.mark.parametrize(
        ("given", "parameter"),
        [
            ({}, "prompt"),
            ({"prompt": 3}, "prompt"),
            ({"prompt": "a", "n": True}, "n"),
            ({"prompt": "a", "n": 0}, "n"),
            ({"prompt": "a", "size": "0x64"}, "size"),
            ({"prompt": "a", "size": 64}, "size"),
            ({"prompt": "a", "partial_images": 4}, "partial_images"),
            ({"prompt": "a", "output_format": ["png"]}, "output_format"),
            ({"prompt": "a", "width": 64}, "width"),
            ({"prompt": "a", "model": 3}, "model"),
        ],
    )
    def test_errors_name_the_parameter(self, given, parameter):
        with pytest.raises(ParameterError) as caught:
            read_order(given)
        assert caught.value.parameter == parameter

    def test_a_forms_texts(self):
        texts = {
            "prompt": "3",
            "n": "2",
            "stream": "true",
            "seed": "5",
            "sampler": "euler",
            "guidance": "x",
            "size": "1x1",
        }
        assert typed(texts) == {**texts, "n": 2, "stream": True, "seed": 5}
        assert typed({"schedule": '{"use_karras_sigmas": true}'}) == {"schedule": {"use_karras_sigmas": True}}

    def test_a_mask_of_another_size(self):
        with pytest.raises(ParameterError, match="make them the same size"):
            edit_settings(Image.new("RGB", (8, 8)), Image.new("RGBA", (9, 8)))

    def test_an_opaque_alpha_channel_is_no_mask(self):
        assert "mask" not in edit_settings(Image.new("RGBA", (8, 8), (1, 2, 3, 255)), None)
        assert "mask" in edit_settings(Image.new("RGBA", (8, 8), (1, 2, 3, 0)), None)


class TestWebInterface:
    def test_settings(self):
        body = Txt2Img(prompt="a", negative_prompt="b", sampler_name="DPM++ 2M", scheduler="karras", width=64, steps=9)
        body.override_settings = {"CLIP_stop_at_last_layers": 2}
        found = settings_of(body, NOTE)
        assert found["sampler"] == "dpmpp_2m"
        assert found["schedule"] == {"sigma_spacing": "karras"}
        assert (found["negative"], found["clip_skip"], found["steps"], found["guidance"]) == ("b", 1, 9, 7.0)

    def test_automatic_in_either_way(self):
        for name in ("Automatic", "automatic"):
            assert settings_of(Txt2Img(sampler_name="Euler", scheduler=name), NOTE)["sampler"] == "euler"

    def test_a_schedule_type_without_a_sampler_is_for_the_models_own(self):
        found = settings_of(Txt2Img(scheduler="Karras"), replace(NOTE, sampler="dpmpp_2m"))
        assert (found["sampler"], found["schedule"]) == ("dpmpp_2m", {"sigma_spacing": "karras"})
        assert "sampler" not in settings_of(Txt2Img(scheduler="Automatic"), NOTE)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"sampler_name": "Fast"}, r"^sampler_name 'Fast': must be one of DDIM, .*DPM\+\+ 2M, "),
            ({"sampler_name": "DPM++ 2N"}, r"^sampler_name 'DPM\+\+ 2N': no such name, the nearest is DPM"),
            ({"sampler_name": "Euler", "scheduler": "Nope"}, "^scheduler 'Nope': must be one of Automatic, .*Karras"),
            ({"scheduler": "Nope"}, "^scheduler 'Nope': must be one of Automatic, "),
        ],
    )
    def test_names_that_are_not_known(self, given, message):
        with pytest.raises(RequestError, match=message):
            settings_of(Txt2Img(**given), NOTE)

    @pytest.mark.parametrize("given", [{"tiling": True}, {"styles": ["x"]}, {"script_name": "x"}])
    def test_what_would_change_the_picture(self, given):
        with pytest.raises(RequestError, match="not served here; leave it out"):
            settings_of(Txt2Img(**given), NOTE)

    @pytest.mark.parametrize(
        ("prompt", "loras"),
        [
            ("a cat", {}),
            ("a <lora:style:0.8> cat", {"style": 0.8}),
            ("a <lora:style> cat<lora:ink:-1>", {"style": 1.0, "ink": -1.0}),
            ("<lora:style:0.5><lora:style:0.25>", {"style": 0.75}),
            ("<lora:ink:0.5:1>", {"ink": {"unet": 1.0, "text_encoder": 0.5, "text_encoder_2": 0.5}}),
            ("<lora:ink:te=0.5:unet=0.5>", {"ink": 0.5}),
            ("<lora:ink:0.5:unet=0>", {"ink": {"unet": 0.0, "text_encoder": 0.5, "text_encoder_2": 0.5}}),
        ],
    )
    def test_tags_of_loras(self, prompt, loras):
        assert loras_of(prompt, ("style", "ink")) == loras
        found = settings_of(Txt2Img(prompt=prompt), replace(NOTE, loras=("style", "ink")))
        assert found.get("loras", {}) == loras
        assert read_loras(loras, lambda value: isinstance(value, float)) == loras
        assert "<" not in without_tags(prompt)

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("<lora:other:1>", "the LoRA 'other' is not loaded on this server; it has style, ink"),
            ("<lora:ink:much>", "strengths must be numbers, such as <lora:ink:0.8>"),
            ("<lora:ink:1:1:8>", "not served here; give <lora:name:strength>"),
            ("<lora:ink:dyn=8>", "not served here"),
            ("<hypernet:ink:1>", "not served here"),
        ],
    )
    def test_tags_that_are_wrong(self, prompt, message):
        with pytest.raises(RequestError, match=f"^prompt: {prompt}: {message}"):
            loras_of(prompt, ("style", "ink"))

    def test_seeds(self):
        assert seeds_of({}, 5, 2) == {"seed": 7}
        assert seeds_of({"variation_seed": 3}, 5, 2) == {"seed": 5, "variation_seed": 5}
        assert seeds_of({"variation_seed": -1}, 5, 2) == {"seed": 5, "variation_seed": -1}


def test_log_lines():
    record = logging.makeLogRecord({"msg": "hello %s", "args": ("you",), "levelname": "INFO", "name": "x", "steps": 3})
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"], line["steps"]) == ("hello you", "info", 3)
    try:
        base64.b64decode("a", validate=True)
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert "Traceback" in json.loads(JsonLines().format(record))["traceback"]
