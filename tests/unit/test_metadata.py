"""A request written into a PNG and read back: every setting, pictures by their pixels, what cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import PICTURES, describe, describe_bundle, describe_picture
from latentrt.runtime.record.picture_files import read_request, save_images
from latentrt.runtime.record.result import Result
from latentrt.runtime.record.webui import write
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.samplers import SAMPLERS, fields_read

PICTURE = Image.linear_gradient("L").resize((64, 48))
PROMPTS = ["Steps: 30, Seed: 7\nNegative prompt: é", "猫 “quoted”, \\n"]
SETTINGS = {
    "negative": ["grey\nSteps: 1, Sampler: Euler", None],
    "prompt_2": "two",
    "negative_2": [None, "two"],
    "prompt_syntax": "a1111",
    "clip_skip": 1,
    "loras": [{"style": 0.5}, {"style": {"unet": 1.0, "text_encoder": 0.25}, "colour": -1.0}],
    "steps": 12,
    "sampler": "dpmpp_2m",
    "schedule": {"use_karras_sigmas": True, "sigma_min": 0.1, "lambda_min_clipped": float("-inf")},
    "guidance": (4.5, 6.0),
    "guidance_rescale": 0.7,
    "guidance_interval": (0.1, 0.9),
    "seed": (1, 2, 3, 2**64 - 1),
    "variation_seed": (5, 6, 7, 8),
    "variation_strength": 0.2,
    "noise": "comfyui",
    "images": 2,
    "width": 64,
    "height": 48,
    "strength": 0.6,
    "paste_back": True,
    "denoising_end": 0.9,
    "decode": True,
    "original_size": (640, 480),
    "crop": (1, 2),
    "target_size": (64, 48),
    "aesthetic_score": 7.0,
    "negative_aesthetic_score": 1.5,
    "negative_conditioning": MicroConditioning((1, 2), (3, 4), (5, 6), 7.0),
}
BUNDLE = {"name": "x", "weights_sha256": "0", "precision": "fp16", "backend": "b", "device": "cpu", "build": None}
DAMAGED_NOTE = json.dumps(
    {"format": 1, "latentrt": "0", "bundle": BUNDLE, "prompt": ["x"], "pictures": 1}
    | {"settings": {"image": [{"file": None, "width": 1, "sha256": "0"}]}}
)
BACKEND = {"backend": "onnxruntime", "device": "cpu", "build": None}
ELSEWHERE = {"image", "mask", "latents", "denoising_start", "timesteps", "sigmas"}
"""Settings that other tests are about (of schedules, `test_repeat`), or that need latents."""


def any_size(width: int, height: int) -> None:
    """Pictures of every size are taken."""


def described(bundle, prompt, settings):
    request = make_request(prompt, settings, bundle.manifest, any_size)
    return describe(describe_bundle(bundle, **BACKEND), prompt, settings, request), request


def written(tmp_path, metadata, pictures=1):
    return save_images([PICTURE] * pictures, tmp_path / "new" / "out.png", metadata)


def test_every_setting_comes_back(bundle, tmp_path):
    assert SETTINGS.keys() | ELSEWHERE == set(Settings.__annotations__)
    given = SETTINGS | {"image": PICTURE, "mask": PICTURE}
    metadata, request = described(bundle, PROMPTS, given)
    files = written(tmp_path, metadata, 4)
    for number, file in enumerate(files, 1):
        stored = read_request(file)
        assert stored == metadata.model_copy(update={"picture": number})
        assert list(stored.prompt) == PROMPTS
        settings = stored.given_settings()
        assert settings == {name: tuple(v) if isinstance(v, list) else v for name, v in SETTINGS.items()}
        again = make_request(stored.prompt, settings | {name: PICTURE for name in PICTURES}, bundle.manifest, any_size)
        for field in type(request).__dataclass_fields__:
            if field != "source":
                assert getattr(again, field) == getattr(request, field)


def test_what_a_request_leaves_to_the_bundle_is_written_down(bundle):
    metadata, request = described(bundle, "a cat", {"negative": None})
    assert metadata.settings == {
        "steps": 30,
        "sampler": "euler",
        "guidance": 5.0,
        "seed": request.seeds[0],
        "width": 1024,
        "height": 1024,
    }
    assert (metadata.prompt, metadata.picture, metadata.pictures) == (("a cat",), 1, 1)
    assert described(bundle, "a cat", {"image": PICTURE})[0].settings["strength"] == 0.8


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_fields_that_the_sampler_does_not_read_are_told_and_not_written(bundle, caplog, sampler):
    fields = {"use_karras_sigmas": True, "eta": 0.5, "beta_schedule": "linear"}
    read = {name: value for name, value in fields.items() if name in fields_read(SAMPLERS[sampler])}
    metadata, request = described(bundle, "a cat", {"sampler": sampler, "schedule": fields})
    assert metadata.settings["schedule"] == read
    unread = [name for name in fields if name not in read]
    told = f"schedule: sampler '{sampler}' does not read {', '.join(unread)}, so it has no effect"
    assert (told in caplog.text) is bool(unread)
    assert request.unread_fields == unread


def test_a_schedule_of_nothing_that_is_read_is_not_written(bundle, caplog):
    metadata, _ = described(bundle, "a cat", {"sampler": "euler_a", "schedule": {"use_karras_sigmas": True}})
    assert "schedule" not in metadata.settings
    assert "Schedule type" not in write(metadata)
    assert "schedule: sampler 'euler_a' does not read use_karras_sigmas, so it has no effect" in caplog.text


GUIDED_ONLY = {
    "negative": "dull",
    "negative_2": "dull",
    "guidance_rescale": 0.7,
    "guidance_interval": (0.2, 0.8),
    "negative_aesthetic_score": 2.0,
    "negative_conditioning": MicroConditioning(crop=(1, 2)),
}


@pytest.mark.parametrize("name", GUIDED_ONLY)
def test_what_needs_guidance_is_told_and_not_written_without(bundle, caplog, name):
    given = {name: GUIDED_ONLY[name]}
    assert name in described(bundle, "a cat", given)[0].settings
    assert not caplog.text
    assert name not in described(bundle, "a cat", given | {"guidance": 1})[0].settings
    assert f"{name}: given, but it has no effect: " in caplog.text
    caplog.clear()
    described(bundle, "a cat", {"guidance": 1, "negative": "", "guidance_rescale": 0.0})
    assert not caplog.text


def test_an_empty_interval_is_written_though_it_leaves_no_guidance(bundle, caplog):
    metadata, _ = described(bundle, "a cat", {"guidance_interval": (0.5, 0.5), "negative": "dull"})
    assert metadata.settings["guidance_interval"] == [0.5, 0.5]
    assert "negative" not in metadata.settings
    assert "negative: given, but it has no effect: no negative prompts are run: " in caplog.text


def test_what_other_settings_decide_is_not_written(bundle, caplog):
    latents = np.zeros((1, 4, 8, 8), np.float32)
    assert "strength" not in described(bundle, "a", {"latents": latents, "denoising_start": 0.5})[0].settings
    assert not caplog.text
    pasted = {"image": PICTURE, "mask": PICTURE, "paste_back": True, "decode": False}
    assert "paste_back" not in described(bundle, "a", pasted)[0].settings
    assert "paste_back: given, but it has no effect: decode=False gives no pictures" in caplog.text


def test_the_order_of_settings_does_not_matter(bundle):
    one, other = {"seed": 1, "steps": 3, "clip_skip": 0}, {"clip_skip": 0, "steps": 3, "seed": 1}
    texts = {json.dumps(described(bundle, "a", settings)[0].model_dump()) for settings in (one, other)}
    assert len(texts) == 1


def test_numbers_of_numpy_are_plain_numbers(bundle, tmp_path):
    given = {"seed": np.int64(7), "guidance": np.float32(4.5), "steps": np.int32(3), "width": np.int64(512)}
    (file,) = written(tmp_path, described(bundle, "a", given)[0])
    settings = read_request(file).settings
    assert {name: settings[name] for name in given} == {"seed": 7, "guidance": 4.5, "steps": 3, "width": 512}


def test_a_picture_is_known_by_its_pixels(tmp_path):
    note = describe_picture(PICTURE, "RGB")
    assert (note.file, note.width, note.height) == (None, 64, 48)
    assert describe_picture(np.asarray(PICTURE.convert("RGB")), "RGB") == note
    PICTURE.save(tmp_path / "a.png", compress_level=0)
    with Image.open(tmp_path / "a.png") as same:
        assert describe_picture(same, "RGB") == note.model_copy(update={"file": "a.png"})
    changed = PICTURE.copy()
    changed.putpixel((3, 3), 255)
    assert describe_picture(changed, "RGB").sha256 != note.sha256
    assert describe_picture(PICTURE, "L").sha256 != note.sha256


def test_pictures_are_noted_by_their_setting(bundle):
    metadata, _ = described(bundle, "a", {"images": 2, "image": [PICTURE, PICTURE.rotate(180)], "mask": PICTURE})
    assert metadata.picture_notes("image") == [describe_picture(one, "RGB") for one in (PICTURE, PICTURE.rotate(180))]
    assert metadata.picture_notes("mask") == [describe_picture(PICTURE, "L")]
    assert not PICTURES.keys() & metadata.given_settings().keys()


def test_a_bundle_and_its_build(bundle):
    note = describe_bundle(bundle, **BACKEND)
    assert (note.name, note.weights_sha256, note.precision) == ("my-bundle", "0" * 64, "fp16")
    assert (note.backend, note.device, note.build) == ("onnxruntime", "cpu", None)


@pytest.mark.parametrize(
    ("prompt", "settings", "what"),
    [
        ("a", {"latents": np.zeros((1, 4, 8, 8), np.float32)}, "latents"),
        (Embeddings(np.zeros((1, 77, 2048), np.float32)), {}, "embeddings"),
    ],
)
def test_arrays_cannot_be_repeated(bundle, tmp_path, prompt, settings, what):
    (file,) = written(tmp_path, described(bundle, prompt, settings)[0])
    with pytest.raises(RequestError, match=f"it was drawn from {what}, which a PNG does not hold"):
        read_request(file).given_settings()


# Files


def test_one_picture_has_the_name_asked(tmp_path):
    picture = Image.new("RGB", (8, 8), "red")
    (file,) = Result([picture], None, {}, None).save(tmp_path / "new" / "out.png")
    assert file == tmp_path / "new" / "out.png"
    assert Image.open(file).getpixel((0, 0)) == (255, 0, 0)


def test_several_pictures_are_numbered(tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    files = Result(pictures, None, {}, None).save(str(tmp_path / "out.png"))
    assert [file.name for file in files] == ["out-1.png", "out-2.png"]
    assert Image.open(files[1]).getpixel((0, 0)) == (0, 0, 255)


def with_text(file: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    PICTURE.save(file, pnginfo=info)
    return file


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "it does not say how it was drawn; it has neither the text `latentrt` nor `parameters`"),
        ({"latentrt": "{"}, "its text `latentrt` is damaged: Expecting property name"),
        ({"latentrt": "[]"}, "its text `latentrt` has format None, this latentrt reads format 1; update latentrt"),
        ({"latentrt": '{"format": 2}'}, "has format 2, this latentrt reads format 1"),
        ({"latentrt": '{"format": 1}'}, "its text `latentrt` is damaged: field latentrt: Field required"),
        ({"latentrt": DAMAGED_NOTE}, "its text `latentrt` is damaged: field height: Field required"),
        ({"parameters": "x\nSteps: few"}, "x.png: parameters: Steps 'few' is not a number"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, texts, message):
    with pytest.raises(RequestError, match=message):
        read_request(with_text(tmp_path / "x.png", **texts))


def test_what_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_text("PNG")
    for name in ("x.png", "nothing.png"):
        with pytest.raises(RequestError, match=f"{name}: not readable as a picture"):
            read_request(tmp_path / name)


def test_a_result_without_pictures_cannot_be_saved(tmp_path):
    with pytest.raises(RequestError, match=r"there is no picture to save; the request had decode=False"):
        save_images([], tmp_path / "out.png")
