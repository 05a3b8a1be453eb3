"""Every field that a PNG holds is read back by --from-png: random requests, and every kind of second pass."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hollow_bundles import without_engines, write_hollow_bundle
from PIL import Image

from latentrt.cli import job as jobs
from latentrt.cli.job import Job
from latentrt.cli.repeat import open_picture, repeated
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.ensemble import Ensemble
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import RefinerNote, UpscaleNote, describe, describe_bundle
from latentrt.runtime.record.picture_files import save_images
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.request.settings import SETTINGS
from latentrt.runtime.samplers import SAMPLERS

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
CONDITIONING = MicroConditioning((1, 2), (3, 4), (5, 6))
PAIRS = [(0, 0), (640, 480)]
VALUES: dict[str, list[Any]] = {
    "negative": ["dull", ["a, b: c", None], ["é\n", "Steps: 1"]],
    "prompt_2": ["two", ["one", None]],
    "negative_2": ["two", [None, "one"]],
    "prompt_syntax": ["latentrt", "a1111"],
    "clip_skip": [0, 1, 2],
    "steps": [1, 30],
    "sampler": sorted(SAMPLERS),
    "schedule": [{"use_karras_sigmas": True, "sigma_max": 12}, {"eta": 0.5}, {"timestep_spacing": "trailing"}, {}],
    "guidance": [0, 1, 7.5, (1.0, 4.25)],
    "guidance_rescale": [0.0, 0.7],
    "guidance_interval": [(0.0, 1.0), (0.1, 0.9), (0.5, 0.5)],
    "seed": [0, 2**64 - 5],
    "variation_seed": [0, 2**63],
    "variation_strength": [0.25, 1],
    "noise": ["diffusers", "comfyui", "a1111"],
    "images": [1, 2],
    "width": [64, 512],
    "height": [48, 1024],
    "strength": [0.3, 1],
    "paste_back": [True, False],
    "denoising_end": [0.8],
    "original_size": PAIRS,
    "crop": PAIRS,
    "target_size": PAIRS,
    "aesthetic_score": [6.5],
    "negative_aesthetic_score": [1],
    "negative_conditioning": [CONDITIONING],
}
OWN_SCHEDULES: dict[str, tuple[float, ...]] = {"timesteps": (900, 400, 30), "sigmas": (9.5, 2, 0.25, 0)}
NOT_WRITTEN = {"latents", "denoising_start", "decode"}
"""Settings of requests that a PNG cannot hold, or that give no picture."""
DECIDED = [
    "prompts",
    "prompts_2",
    "guidance",
    "guided",
    "seeds",
    "variation_seeds",
    "steps",
    "sampler",
    "width",
    "height",
    "conditioning",
]
REFINER = {"start": 0.7, "strength": 0.4}


def any_size(width: int, height: int) -> None:
    """Every size is taken."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_hollow_bundle(tmp_path_factory.mktemp("repeat") / "my-bundle")


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("image", "mask"):
        PICTURE.save(f"{name}.png")


def random_settings(chance: random.Random) -> dict[str, Any]:
    """Some settings; those of pictures only with a picture."""
    settings = {name: chance.choice(values) for name, values in VALUES.items() if chance.random() < 0.4}
    if chance.random() < 0.5:
        settings["image"] = open_picture(Path("image.png"))
        if chance.random() < 0.5:
            settings["mask"] = open_picture(Path("mask.png"))
    for name in [name for name in settings if SETTINGS[name].needs and not {*SETTINGS[name].needs} & settings.keys()]:
        del settings[name]
    return settings


def write(bundle: Bundle, settings: dict[str, Any], name: str = "out.png", **notes: Any) -> tuple[Path, Any]:
    request = make_request(["a cat", "猫, “two”"], settings, bundle.manifest, any_size)  # type: ignore[arg-type]
    note = describe_bundle(bundle, backend="onnxruntime", device="cpu", build=None)
    metadata = describe(note, ["a cat", "猫, “two”"], settings, request)  # type: ignore[arg-type]
    (file,) = save_images([PICTURE], Path(name), metadata.model_copy(update=notes))
    return file, request


def test_every_setting_has_values_here() -> None:
    assert VALUES.keys() | NOT_WRITTEN | {"image", "mask", "loras"} | OWN_SCHEDULES.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", OWN_SCHEDULES)
def test_a_schedule_of_ones_own_is_read_back(bundle: Bundle, name: str) -> None:
    file, request = write(bundle, {name: OWN_SCHEDULES[name], "schedule": {"eta": 0.5}, "sampler": "euler_a"})
    again = make_request(["x", "y"], {**repeated(file, bundle, ()).options}, bundle.manifest, any_size)  # type: ignore[typeddict-item]
    assert again.schedule_fields == request.schedule_fields == {"eta": 0.5, name: OWN_SCHEDULES[name]}
    assert again.steps == request.steps == 3


def test_steps_of_the_command_line_go_before_a_stored_schedule(bundle: Bundle) -> None:
    file, _ = write(bundle, {"timesteps": (900, 400, 30)})
    stored = repeated(file, bundle, ())
    assert {"steps", "timesteps"} <= stored.options.keys()
    assert Job((), {"steps": 20}).over(stored).options["steps"] == 20
    assert "timesteps" not in Job((), {"steps": 20}).over(stored).options
    over = Job((), {"sigmas": (9, 1)}).over(stored).options
    assert over["sigmas"] == (9, 1)
    assert not {"steps", "timesteps"} & over.keys()


def test_a_named_schedule_of_the_command_line_replaces_a_stored_one(bundle: Bundle) -> None:
    file, _ = write(bundle, {"schedule": "karras", "sampler": "DPM++ 2M"})
    stored = repeated(file, bundle, ())
    assert stored.options["schedule"] == {"sigma_spacing": "karras"}
    given = Job((), {"schedule": {"use_beta_sigmas": True}})
    assert given.over(stored).options["schedule"] == {"use_beta_sigmas": True}


@pytest.mark.parametrize("seed", range(60))
def test_a_random_request_is_read_back(bundle: Bundle, seed: int) -> None:
    name = ("out.png", "out.jpg", "out.webp")[seed % 3]
    file, request = write(bundle, random_settings(random.Random(seed)), name)
    job = repeated(file, bundle, ())
    again = make_request(job.prompts, {**job.options}, bundle.manifest, any_size)  # type: ignore[typeddict-item]
    for name in DECIDED:
        assert getattr(again, name) == getattr(request, name), name
    assert again.texts == request.texts
    assert not request.guided or again.negative_conditioning == request.negative_conditioning
    for name in ("clip_skip", "guidance_rescale", "guidance_interval", "paste_back", "denoising_end"):
        use = SETTINGS[name].use
        assert again.settings[name] == request.settings[name] or (use is not None and not use.applies(request)), name
    read = {name: value for name, value in request.schedule if name not in request.unread_fields}
    assert dict(again.schedule) == read
    if request.source is not None:
        for name in type(request.source).__dataclass_fields__:
            assert np.array_equal(getattr(again.source, name), getattr(request.source, name)), name


@pytest.mark.parametrize("resample", get_args(UpscaleNote.model_fields["resample"].annotation))
@pytest.mark.parametrize("enlarge", get_args(UpscaleNote.model_fields["enlarge"].annotation))
def test_every_field_of_the_high_resolution_fix_is_read_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, resample: Any, enlarge: Any
) -> None:
    note = UpscaleNote(scale=1.25, resample=resample, enlarge=enlarge, strength=0.35)
    found: dict[str, Any] = {}
    monkeypatch.setattr(jobs, "generate_large", lambda *_, **settings: found.update(settings))
    file, _ = write(bundle, {"seed": 1}, upscale=note)
    repeated(file, bundle, ()).draw(bundle, lambda one: nullcontext(None), lambda done, total: None)  # type: ignore
    assert {name: found[name] for name in UpscaleNote.model_fields} == note.model_dump()


@pytest.mark.parametrize("field", sorted(set(RefinerNote.model_fields) - {"bundle"}))
def test_every_field_of_the_refiner_is_read_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    made = describe_bundle(bundle, backend="onnxruntime", device="cpu", build=None)
    file, _ = write(bundle, {"seed": 1}, refiner=RefinerNote(bundle=made, **{field: REFINER[field]}))
    found: dict[str, Any] = {}
    for name in ("generate", "refine"):
        monkeypatch.setattr(Ensemble, name, lambda *_, **settings: found.update(settings))

    def load(one: Bundle) -> Pipeline:
        return without_engines(one)

    repeated(file, bundle, ()).draw(bundle, load, lambda done, total: None)
    assert found[{"start": "handover", "strength": "strength"}[field]] == REFINER[field]
