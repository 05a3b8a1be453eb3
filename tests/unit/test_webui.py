"""The web interface's `parameters`: written, read, and both one after the other."""

import pytest

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import BundleNote, Metadata, RefinerNote, UpscaleNote
from latentrt.runtime.record.webui import AUTOMATIC, DIFFUSERS_SPACINGS, read, write
from latentrt.runtime.samplers import SAMPLERS, fields_read
from latentrt.runtime.samplers.names import WEBUI_SAMPLERS, WEBUI_SCHEDULES

SPACINGS = {label: spacing for spacing, label in WEBUI_SCHEDULES.items()} | {"Uniform": "normal"}


def takes_names(sampler):
    return "sigma_spacing" in fields_read(SAMPLERS[sampler])


BUNDLE = BundleNote(
    name="sdxl", weights_sha256="0123456789abcdef", precision="fp16", backend="tensorrt", device="cuda:0", build="b"
)
SETTINGS = {"steps": 30, "sampler": "euler_a", "guidance": 5.0, "seed": 7, "width": 1024, "height": 768}
LINE = "Steps: 30, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 1024x768, Model hash: 0123456789, Model: sdxl"
VERSION = "Version: latentrt 0.1.0"


def metadata(prompt=("a cat",), settings=None, picture=1, pictures=1, **more):
    return Metadata(
        latentrt="0.1.0",
        bundle=BUNDLE,
        prompt=prompt,
        settings=SETTINGS | (settings or {}),
        picture=picture,
        pictures=pictures,
        **more,
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (metadata(), f"a cat\n{LINE}, {VERSION}"),
        (metadata(settings={"negative": "dull"}), f"a cat\nNegative prompt: dull\n{LINE}, {VERSION}"),
        (metadata(settings={"clip_skip": 1}), f"a cat\n{LINE}, Clip skip: 2, {VERSION}"),
        (metadata(settings={"strength": 0.4}), f"a cat\n{LINE}, Denoising strength: 0.4, {VERSION}"),
        (
            metadata(settings={"schedule": {"use_karras_sigmas": True}}),
            f"a cat\n{LINE.replace('Euler a', 'Euler a, Schedule type: Karras')}, {VERSION}",
        ),
        (
            metadata(upscale=UpscaleNote(scale=1.5, resample="lanczos", strength=0.5)),
            f"a cat\n{LINE}, Denoising strength: 0.5, Hires upscale: 1.5, {VERSION}",
        ),
        (
            metadata(refiner=RefinerNote(bundle=BUNDLE, start=0.8)),
            f"a cat\n{LINE}, Refiner: sdxl [0123456789], Refiner switch at: 0.8, {VERSION}",
        ),
        (
            metadata(refiner=RefinerNote(bundle=BUNDLE, strength=0.3)),
            f"a cat\n{LINE}, Refiner: sdxl [0123456789], {VERSION}",
        ),
        (
            metadata(settings={"images": 4}, picture=2, pictures=4),
            f"a cat\n{LINE}, Batch size: 4, Batch pos: 1, {VERSION}",
        ),
        (
            metadata(("a", "b"), {"images": 2, "seed": [1, 2, 3, 4], "negative": ["x", None]}, picture=2, pictures=4),
            f"a\nNegative prompt: x\n{LINE.replace('Seed: 7', 'Seed: 2')}, {VERSION}",
        ),
        (
            metadata(("a", "b"), {"images": 2, "guidance": [4.0, 5.5], "negative": ["x", None]}, picture=3, pictures=4),
            f"b\n{LINE.replace('scale: 5', 'scale: 5.5')}, Batch size: 4, Batch pos: 2, {VERSION}",
        ),
        (
            metadata(settings={"variation_seed": 9, "variation_strength": 0.25}),
            f"a cat\n{LINE.replace('Seed: 7', 'Seed: 7, Variation seed: 9, Variation seed strength: 0.25')}, {VERSION}",
        ),
        (
            metadata(settings={"images": 2, "seed": [7, 8], "noise": "a1111"}, picture=2, pictures=2),
            f"a cat\n{LINE.replace('Seed: 7', 'Seed: 8')}, RNG: CPU, {VERSION}",
        ),
        (metadata(settings={"sampler": "deis"}), f"a cat\n{LINE.replace('Euler a', 'deis')}, {VERSION}"),
    ],
)
def test_what_is_written(found, text):
    assert write(found) == text


SYNTAX = {"prompt_syntax": "a1111"}
PLAIN = SYNTAX | {"sampler": "euler", "steps": 20}


@pytest.mark.parametrize(
    ("text", "prompt", "settings", "ignored"),
    [
        ("a cat", "a cat", SYNTAX, ()),
        ("a cat\nNegative prompt: dull", "a cat", SYNTAX | {"negative": "dull"}, ()),
        (
            "a\ncat\nNegative prompt: dull\ngrey\nSteps: 20, Sampler: Euler",
            "a\ncat",
            PLAIN | {"negative": "dull\ngrey"},
            (),
        ),
        ("Negative prompt: dull\nSteps: 20, Sampler: Euler", "", PLAIN | {"negative": "dull"}, ()),
        ("Steps: up\na cat\nSteps: 20, Sampler: Euler", "Steps: up\na cat", PLAIN, ()),
        ("a cat\nSteps: 20, Sampler: euler", "a cat", PLAIN, ()),
        ("a cat\nSteps: 20, Sampler: Euler\n\nWarning: the prompt is long", "a cat", PLAIN, ()),
        (
            "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7.5, Seed: 4012345678, Size: 512x768, Clip skip: 2",
            "a cat",
            PLAIN | {"guidance": 7.5, "seed": 4012345678, "width": 512, "height": 768, "clip_skip": 1},
            (),
        ),
        (
            "a cat\nSteps: 20, Sampler: Euler, Seed: 3, Variation seed: 4, Variation seed strength: 0.3, RNG: CPU",
            "a cat",
            PLAIN | {"seed": 3, "variation_seed": 4, "variation_strength": 0.3, "noise": "a1111"},
            (),
        ),
        ("a cat\nSteps: 20, Sampler: Euler, RNG: NV", "a cat", PLAIN, ("RNG: NV",)),
        (
            'a cat\nSteps: 20, Sampler: Euler, Model: x y, Lora hashes: "a: 1, b: 2", Version: v1.10.1',
            "a cat",
            PLAIN,
            ("Model: x y", "Lora hashes: a: 1, b: 2", "Version: v1.10.1"),
        ),
    ],
)
def test_what_is_read(text, prompt, settings, ignored):
    found = read(text)
    assert (found.prompt, found.settings, found.ignored) == (prompt, settings, ignored)


@pytest.mark.parametrize("sampler", WEBUI_SAMPLERS)
@pytest.mark.parametrize("schedule", ["Automatic", *SPACINGS])
def test_sampler_names(sampler, schedule):
    assert sampler in SAMPLERS
    meant = SPACINGS.get(AUTOMATIC.get(sampler) if schedule == "Automatic" else schedule)
    wanted = SYNTAX | {"sampler": sampler, "steps": 1}
    wanted |= {"schedule": {"sigma_spacing": meant}} if meant and takes_names(sampler) else {}
    name = WEBUI_SAMPLERS[sampler]
    assert read(f"x\nSteps: 1, Sampler: {name}, Schedule type: {schedule}").settings == wanted
    if schedule != "Automatic":
        assert read(f"x\nSteps: 1, Sampler: {name} {schedule}").settings == wanted


@pytest.mark.parametrize(
    ("sampler", "fields", "words"),
    [
        ("euler_a", {"eta": 0.67, "s_noise": 1.003}, "Eta: 0.67, Sigma noise: 1.003"),
        (
            "heun",
            {"sigma_spacing": "karras", "s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 9.0},
            "Sigma churn: 4, Sigma tmin: 0.1, Sigma tmax: 9",
        ),
        (
            "dpmpp_2m",
            {"sigma_spacing": "karras", "sigma_max": 10.0, "sigma_min": 0.1, "rho": 5.0},
            "Schedule max sigma: 10, Schedule min sigma: 0.1, Schedule rho: 5",
        ),
    ],
)
def test_numbers_of_the_schedule_in_the_interfaces_words(sampler, fields, words):
    text = write(metadata(settings={"sampler": sampler, "schedule": fields}))
    assert f", {words}, CFG scale: 5, " in text
    assert read(text).settings["schedule"] == fields


@pytest.mark.parametrize("label", DIFFUSERS_SPACINGS)
def test_diffusers_spacings_are_written_as_the_nearest_type(label):
    field, value = DIFFUSERS_SPACINGS[label]
    assert f"Schedule type: {label}, " in write(metadata(settings={"schedule": {field: value}}))


def test_both_align_your_steps_have_one_name():
    for spacing in ("align_your_steps_xl", "align_your_steps_15"):
        text = write(metadata(settings={"schedule": {"sigma_spacing": spacing}}))
        assert "Schedule type: Align Your Steps, " in text
        assert read(text).settings["schedule"] == {"sigma_spacing": "align_your_steps"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [{}, *({"sigma_spacing": spacing} for spacing in WEBUI_SCHEDULES)])
def test_what_is_written_reads_back(sampler, schedule):
    """A prompt of one line: the text cannot say where a longer one ends, the JSON beside it can."""
    settings = SETTINGS | {"sampler": sampler, "negative": 'dull, "grey"', "clip_skip": 2}
    settings |= {"schedule": schedule} if schedule and takes_names(sampler) else {}
    found = read(write(metadata(("a (red:1.2) cat, Size: 1x1",), settings)))
    assert found.prompt == "a (red:1.2) cat, Size: 1x1"
    assert found.settings == settings | SYNTAX
    assert found.ignored == ("Model hash: 0123456789", "Model: sdxl", VERSION)


def test_names_with_marks_are_quoted():
    bundle = BUNDLE.model_copy(update={"name": 'a, b: "c"\né'})
    text = write(metadata().model_copy(update={"bundle": bundle}))
    assert 'Model: "a, b: \\"c\\"\\né"' in text
    assert 'Model: a, b: "c"\né' in read(text).ignored


def test_an_unknown_sampler_may_be_left_unread():
    found = read("x\nSteps: 9, Sampler: DPM fast, Schedule type: Turbo", sampler=False)
    assert (found.settings, found.ignored) == (SYNTAX | {"steps": 9}, ("Sampler: DPM fast", "Schedule type: Turbo"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Steps: few", "parameters: Steps 'few' is not a number"),
        ("Steps: 9, CFG scale: 1x", "parameters: CFG scale '1x' is not a number"),
        ("Steps: 9, Size: large", "parameters: Size 'large' is not WIDTHxHEIGHT"),
        (
            "Steps: 9, Sampler: DPM adaptive",
            r"parameters: sampler 'DPM adaptive': latentrt does not have it: it chooses its steps by what the model",
        ),
        (
            "Steps: 9, Sampler: Euler, Schedule type: Turbo",
            "parameters: schedule 'Turbo': latentrt knows align_your_steps, beta",
        ),
    ],
)
def test_what_cannot_be_read(line, message):
    with pytest.raises(RequestError, match=message):
        read(f"x\n{line}")
