"""`latentrt generate`: every option reaches the request, and a PNG repeats it."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from command_line import run_main
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.ensemble import Ensemble
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.picture_files import read_request
from latentrt.runtime.request.settings import SETTINGS
from latentrt.runtime.upscale import generate_large

OF_PROGRAMS = {"latents", "denoising_start", "denoising_end", "decode", "negative_conditioning", "loras"}
"""Settings that hand arrays from model to model, a rare one, and LoRAs, which the command loads by itself."""

FAST = ("--steps", "2", "--width", "64", "--height", "64")
TEXT = ("a (red:1.2) circle\nSteps: 3, Sampler: Euler", *FAST)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The working folder, with a picture and a mask in it."""
    monkeypatch.chdir(tmp_path)
    gradient = Image.linear_gradient("L").resize((72, 64))
    Image.merge("RGB", [gradient, gradient.rotate(180), gradient]).save("photo.png")
    mask = Image.new("L", (72, 64))
    ImageDraw.Draw(mask).rectangle((20, 10, 50, 50), fill=255)
    mask.save("mask.png")
    return tmp_path


class KeptPipelines:
    """The tiny bundle's pipelines, loaded once for all runs of the command; every run gets them in turn."""

    def __init__(self, bundle):
        self.bundle, self.pipelines, self.taken = bundle, [], 0

    def load(self, bundle, backend=None, device=None, **options):
        assert bundle.path == self.bundle
        self.taken += 1
        if self.taken > len(self.pipelines):
            self.pipelines.append(Pipeline.load(bundle, backend, device, **options))
        return nullcontext(self.pipelines[self.taken - 1])


@pytest.fixture(scope="module")
def kept(sdxl_bundle):
    found = KeptPipelines(sdxl_bundle)
    yield found
    for pipeline in found.pipelines:
        pipeline.close()


@pytest.fixture(scope="module")
def pipe(kept):
    """The pipeline that the command uses first."""
    kept.taken = 0
    return kept.load(Bundle.open(kept.bundle)).__enter__()


@pytest.fixture
def draw(kept, pictures, capsys, monkeypatch):
    """Run `generate` on the tiny bundle and give the files, or the error of a run that failed with `code`."""
    monkeypatch.setattr("latentrt.cli.generate.Pipeline", kept)

    def run(*arguments, to="out.png", code=0):
        kept.taken = 0
        done = run_main(capsys, "generate", kept.bundle, *arguments, "-o", to, "--force")
        assert done.exit == code, done.stderr
        run.said = done.error
        return done.error if code else [Path(name) for name in done.result["files"]]

    return run


def stored(file: Path):
    with Image.open(file) as image:
        return json.loads(image.text["latentrt"])


def pixels(file):
    with Image.open(file) as image:
        return image.tobytes()


def test_there_is_an_option_for_every_setting():
    assert {name for name, setting in SETTINGS.items() if not setting.option} == OF_PROGRAMS


def test_every_setting_is_reached(draw, pipe):
    Path("prompts.txt").write_text("a red circle\n\n  a star \n", encoding="utf-8-sig")
    options = {
        "--prompts-file": ["prompts.txt"],
        "--negative": ["dull", "grey"],
        "--prompt-2": ["large"],
        "--negative-2": ["small"],
        "--clip-skip": [1],
        "--steps": [2],
        "--sampler": ["dpmpp_2m"],
        "--schedule": ["use_karras_sigmas=true", "final_sigmas_type=sigma_min", "sigma_max=12"],
        "--guidance": [4, 6.5],
        "--guidance-rescale": [0.7],
        "--guidance-interval": ["0.1:0.9"],
        "--seed": [1, 2, 3, 4],
        "--images": [2],
        "--width": [64],
        "--height": [72],
        "--original-size": ["100x90"],
        "--crop": ["3x4"],
        "--target-size": ["60x70"],
    }
    files = draw(*(word for flag, values in options.items() for value in values for word in (flag, value)))
    assert [file.name for file in files] == ["out-1.png", "out-2.png", "out-3.png", "out-4.png"]
    wanted = {
        "negative": ["dull", "grey"],
        "prompt_2": "large",
        "negative_2": "small",
        "clip_skip": 1,
        "steps": 2,
        "sampler": "dpmpp_2m",
        "schedule": {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "sigma_max": 12},
        "guidance": [4, 6.5],
        "guidance_rescale": 0.7,
        "guidance_interval": [0.1, 0.9],
        "seed": [1, 2, 3, 4],
        "images": 2,
        "width": 64,
        "height": 72,
        "original_size": [90, 100],
        "crop": [4, 3],
        "target_size": [70, 60],
    }
    found = stored(files[2])
    assert (found["prompt"], found["settings"], found["picture"]) == (["a red circle", "a star"], wanted, 3)
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()}
    again = pipe.generate(["a red circle", "a star"], **asked)
    assert [image.tobytes() for image in again.images] == [pixels(file) for file in files]


def test_a_picture_and_a_mask_are_reached(draw, pipe):
    options = ("--image", "photo.png", "--mask", "mask.png", "--strength", "0.6", "--paste-back", "--seed", "5")
    (file,) = draw("a cat", *options, "--steps", "3")
    settings = stored(file)["settings"]
    assert [note["file"] for name in ("image", "mask") for note in settings[name]] == ["photo.png", "mask.png"]
    assert (settings["strength"], settings["paste_back"], settings["width"]) == (0.6, True, 72)
    with Image.open("photo.png") as image, Image.open("mask.png") as mask:
        asked = {"strength": 0.6, "paste_back": True, "seed": 5, "steps": 3}
        result = pipe.generate("a cat", image=image, mask=mask, **asked)
    assert result.images[0].tobytes() == pixels(file)


REPEATED = {
    "text": TEXT,
    "batch": (*TEXT, "--images", "3"),
    "seeds": (*TEXT, "--images", "2", "--seed", "3", "--seed", "9", "--sampler", "euler_a"),
    "clip skip": (*TEXT, "--clip-skip", "2", "--negative", "Steps: 1,\n", "--crop", "8x16"),
    "image": ("a cat", "--image", "photo.png", "--steps", "3", "--width", "64"),
    "mask": ("a cat", "--image", "photo.png", "--mask", "mask.png", "--steps", "2", "--no-paste-back"),
    "upscale": (*TEXT, "--upscale", "1.5", "--upscale-strength", "0.7"),
    "upscaled latents": (*TEXT, "--upscale", "1.5", "--upscale-enlarge", "latents"),
    "filter": (*TEXT, "--upscale", "1.5", "--upscale-resample", "nearest"),
    "ensemble": (*TEXT, "--refiner", "{bundle}", "--refiner-start", "0.5"),
    "two passes": (*TEXT, "--refiner", "{bundle}", "--refiner-strength", "0.6"),
}


@pytest.mark.parametrize("options", REPEATED.values(), ids=REPEATED)
def test_a_picture_is_repeated_to_the_byte(draw, sdxl_bundle, options):
    suffix = (".png", ".jpg", ".webp")[len(options) % 3]
    files = draw(*(word.format(bundle=sdxl_bundle) for word in options), to=f"out{suffix}")
    again = draw("--from-png", files[-1], to=f"again{suffix}")
    assert read_request(again[0]) == read_request(files[0])
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    assert "drawn" not in draw.said


def test_second_passes_are_those_of_the_library(draw, pipe):
    (file,) = draw(*TEXT, "--seed", "4", "--upscale", "1.5", "--upscale-strength", "0.7")
    wanted = generate_large(pipe, TEXT[0], scale=1.5, strength=0.7, steps=2, seed=4, width=64, height=64)
    assert wanted.images[0].tobytes() == pixels(file)
    assert stored(file)["upscale"] == {
        "scale": 1.5,
        "resample": "lanczos",
        "enlarge": "pixels",
        "strength": 0.7,
    }


def test_options_win_over_the_png(draw):
    (file,) = draw(*TEXT, "--seed", "7", "--schedule", "use_karras_sigmas=true", "--negative", "dull")
    (other,) = draw(
        *("a star", "--from-png", file, "--seed", "8", "--steps", "3", "--schedule", "timestep_spacing=trailing"),
        to="other.png",
    )
    assert stored(other)["prompt"] == ["a star"]
    schedule = {"use_karras_sigmas": True, "timestep_spacing": "trailing"}
    changed = {"seed": 8, "steps": 3, "schedule": schedule}
    assert stored(other)["settings"] == stored(file)["settings"] | changed


def test_a_second_pass_may_be_changed(draw, sdxl_bundle):
    (file,) = draw(*TEXT, "--refiner", sdxl_bundle, "--refiner-start", "0.5")
    (other,) = draw("--from-png", file, "--refiner-strength", "0.6", to="other.png")
    assert (stored(other)["refiner"]["start"], stored(other)["refiner"]["strength"]) == (None, 0.6)
    error = draw("--from-png", file, "--upscale", "2", to="other.png", code=2)
    assert "--refiner and --upscale do not go together" in error


def test_pictures_must_be_there_as_they_were(draw, pictures):
    options = ("--image", "photo.png", "--steps", "2")
    (file,) = draw("a cat", *options, to="drawn/out.png")
    photo = Path("photo.png").rename("drawn/photo.png")
    draw("--from-png", file)  # beside the PNG
    Image.open(photo).rotate(180).save(photo)
    assert "photo.png: not the image that" in draw("--from-png", file, code=1)
    assert "its pixels have another sha256 than" in draw.said
    draw("--from-png", file, "--image", photo)
    photo.unlink()
    error = draw("--from-png", file, code=1)
    assert "its image photo.png is neither here nor beside the PNG. Put it there, or name it with --image" in error


def edit(file: Path, change) -> Path:
    """The PNG with its text changed."""
    with Image.open(file) as image:
        values, info = json.loads(image.text["latentrt"]), PngInfo()
        change(values)
        info.add_text("latentrt", json.dumps(values))
        image.save(file, pnginfo=info)
    return file


def test_other_weights_are_told(draw):
    (file,) = draw(*TEXT)
    edit(file, lambda values: values["bundle"].update(weights_sha256="f" * 64, name="other"))
    draw("--from-png", file, to="again.png")
    assert "drawn with other weights (other, sha256 ffffffffff…)" in draw.said
    edit(file, lambda values: values["bundle"].update(stored(Path("again.png"))["bundle"], precision="fp16"))
    draw("--from-png", file, to="again.png")
    assert "drawn in fp16;" in draw.said


def test_a_refiner_must_be_there_as_it_was(draw, sdxl_bundle):
    (file,) = draw(*TEXT, "--refiner", sdxl_bundle)
    edit(file, lambda values: values["refiner"]["bundle"].update(weights_sha256="f" * 64))
    error = draw("--from-png", file, to="again.png", code=1)
    assert f"RequestError: {sdxl_bundle}: not the refiner that {file} was drawn with: its weights have sha256" in error
    edit(file, lambda values: values["refiner"]["bundle"].update(name="lost"))
    assert f"its refiner lost is neither here nor beside {sdxl_bundle}" in draw("--from-png", file, to="x.png", code=1)
    draw("--from-png", file, "--refiner", sdxl_bundle, to="again.png")


def with_parameters(text: str) -> Path:
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save("webui.png", pnginfo=info)
    return Path("webui.png")


WEBUI = "a (red) cat\nNegative prompt: dull\nSteps: 2, Sampler: {}, CFG scale: 6, Seed: 3, Size: 64x72, Clip skip: 2"


def test_a_png_of_the_web_interface_is_repeated(draw):
    file = with_parameters(WEBUI.format("DPM++ 2M Karras") + ", Model: x")
    (drawn,) = draw("--from-png", file)
    wanted = {"negative": "dull", "steps": 2, "sampler": "dpmpp_2m", "guidance": 6.0, "seed": 3}
    wanted |= {"schedule": {"sigma_spacing": "karras"}, "width": 64, "height": 72, "prompt_syntax": "a1111"}
    assert (stored(drawn)["prompt"], stored(drawn)["settings"]) == (["a (red) cat"], wanted)
    assert "some of its `parameters` are left out: Model: x, Clip skip: 2" in draw.said


def test_a_schedule_type_that_the_sampler_does_not_read_is_told(draw):
    (drawn,) = draw("--from-png", with_parameters(WEBUI.format("LCM") + ", Schedule type: Karras"))
    assert "schedule" not in stored(drawn)["settings"]
    assert "Schedule type" not in Image.open(drawn).text["parameters"]
    assert "some of its `parameters` are left out: Schedule type: Karras, Clip skip: 2" in draw.said


def test_a_turned_photo_is_repeated(draw, pipe):
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open("photo.png") as photo:
        photo.save("turned.png", exif=exif)
    result = pipe.generate("a cat", image=Image.open("turned.png"), steps=2, seed=1)
    assert result.images[0].size == (64, 72)
    (file,) = result.save("library.png")
    (again,) = draw("--from-png", file, to="again.png")
    assert again.read_bytes() == file.read_bytes()


def test_an_unknown_sampler_of_the_web_interface(draw):
    file = with_parameters(WEBUI.format("DPM adaptive"))
    error = draw("--from-png", file, code=1)
    assert "sampler 'DPM adaptive': latentrt does not have it: it chooses its steps" in error
    (drawn,) = draw("--from-png", file, "--sampler", "ddim")
    assert stored(drawn)["settings"]["sampler"] == "ddim"
    assert "left out: Sampler: DPM adaptive" in draw.said


def test_a_png_that_says_nothing(draw):
    assert "photo.png: it does not say how it was drawn" in draw("--from-png", "photo.png", code=1)


def test_a_refiner_takes_over_what_the_base_has_settled(pipe):
    others = Defaults(sampler="ddim", steps=5, guidance=2.0)
    bundle = Bundle(pipe.bundle.path, pipe.bundle.manifest.model_copy(update={"defaults": others}))
    with Pipeline.load(bundle) as refiner:
        both = Ensemble(pipe, refiner)
        taken_over = both.generate("a star", handover=0.9, seed=1, width=64, height=64)
        refined = both.refine("a star", strength=0.5, seed=1, width=64, height=64)
    for result in (taken_over, refined):
        request = result.request
        assert (request.sampler, request.steps, request.guidance, request.seeds) == ("euler", 30, (5.0,), (1,))
    assert refined.request.source.strength == 0.5
    assert (refined.metadata.refiner.strength, taken_over.metadata.refiner.start) == (0.5, 0.9)
    assert "strength" not in refined.metadata.settings


@pytest.mark.parametrize("option", ["--aesthetic-score", "--negative-aesthetic-score"])
def test_scores_are_reached(draw, option):
    assert "RequestError: aesthetic score: only SDXL's refiner takes one" in draw("x", option, "7", code=1)
