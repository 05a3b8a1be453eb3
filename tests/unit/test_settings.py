"""What a request says beside its prompt: defaults, and refusals before anything runs; no pipeline here has engines."""

import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hollow_bundles import SDXL, without_engines, write_hollow_bundle
from json_files import edit_json
from PIL import Image
from settings_table import PAGE, between_markers, table
from typer.main import get_command

from latentrt.cli.main import application
from latentrt.export.family import TIME_IDS
from latentrt.runtime import Embeddings, Ensemble, generate_large
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import MANIFEST
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline, Result
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import SETTINGS, Settings

IMAGE = Image.new("RGB", (1024, 768), "red")
MASK = Image.new("L", (1024, 768), 255)
LATENTS = np.zeros((1, 4, 96, 128), np.float32)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with without_engines(write_hollow_bundle(tmp_path_factory.mktemp("settings") / "my-bundle")) as pipe:
        yield pipe


def refused(pipeline: Pipeline, prompt: Any = "a cat", **settings: Any) -> str:
    with pytest.raises(RequestError) as caught:
        pipeline.generate(prompt, **settings)
    return str(caught.value)


def test_defaults_are_the_bundles(pipeline: Pipeline) -> None:
    request = pipeline.request("a cat", seed=7)
    assert (request.steps, request.sampler, request.guidance, request.seeds) == (30, "euler", (5.0,), (7,))
    assert (request.width, request.height, request.source) == (1024, 1024, None)
    assert pipeline.request("a cat", steps=None, guidance=None, schedule=None, width=None, seed=7) == request


def test_of_a_picture_the_size_is_the_requests(pipeline: Pipeline) -> None:
    request = pipeline.request("a cat", image=IMAGE)
    assert (request.width, request.height) == (1024, 768)
    assert request.source is not None
    assert request.source.strength == 0.8
    masked = pipeline.request("a cat", image=IMAGE, mask=MASK, width=512, height=512)
    assert masked.source is not None
    assert masked.source.strength == 1
    assert masked.source.pixels is not None
    assert masked.source.mask is not None
    assert masked.source.pixels.shape == (1, 3, 512, 512)
    assert masked.source.mask.shape == (1, 1, 512, 512)
    assert pipeline.request("a cat", latents=LATENTS).width == 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"colour": 1, "shape": 2},
            "colour: no such setting; shape: no such setting. The settings are ",
        ),
        ({"guidence": 5}, "guidence: no such setting, the nearest is guidance"),
        ({"guidance_scale": 5}, "guidance_scale: it is called guidance here"),
        ({"num_inference_steps": 5}, "num_inference_steps: it is called steps here"),
        ({"negative_prompt": "x"}, "negative_prompt: it is called negative here"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt: it is called images here"),
        ({"mask_image": MASK}, "mask_image: it is called mask here"),
        ({"output_type": "latent"}, "output_type: a result has pictures and latents; decode=False draws the latents "),
        ({"generator": 1}, "generator: give seed=, which draws what torch's CPU generator of that seed would"),
        # pictures
        ({"image": IMAGE, "mask": MASK.resize((512, 512))}, "mask: 512 x 512 pixels, the image has 1024 x 768. Make "),
        ({"image": IMAGE, "strength": 1.2}, "strength 1.2: must be a number from 0 (keep) to 1 (draw anew)"),
        ({"image": IMAGE, "strength": "0.5"}, "strength '0.5': must be a number from 0"),
        ({"image": IMAGE, "strength": 0}, "strength 0: none of 30 steps is left to run, the picture would stay as it "),
        ({"image": IMAGE.convert("RGBA")}, "image: it has an alpha channel. Put it on a background, or take its "),
        ({"image": np.zeros((768, 1024), np.uint8)}, "image: an array of shape [768, 1024]; it must be (height, "),
        ({"image": np.zeros((768, 1024, 3), int)}, "image: an array of int64 from 0 to 0; it must hold bytes, or "),
        (
            {"image": IMAGE.crop((0, 0, 1023, 768))},
            "image: it has 1023 x 768 pixels; width 1023: must be a multiple of 8; the nearest are 1016 and 1024. ",
        ),
        ({"image": IMAGE.crop((0, 0, 256, 768))}, "width 256: this build serves 512 to 1536 in steps of 8. Rebuild"),
        ({"image": IMAGE, "width": 10**9}, "width 1000000000: this build serves 512 to 1536 in steps of 8. Rebuild"),
        ({"image": IMAGE, "width": 1001}, "width 1001: must be a multiple of 8; the nearest are 1000 and 1008"),
        *(
            ({"image": IMAGE, "width": value}, f"width {value!r}: must be a whole number of at least 1")
            for value in (0, -8, "8", 8.5, True)
        ),
        ({"width": 0}, "width 0: must be a whole number of at least 1"),
        ({"image": [IMAGE, IMAGE]}, "image: 2 given for 1 pictures; give one, or one per picture"),
        ({"image": [IMAGE] * 2, "images": 3}, "image: 2 given for 3 pictures; give one, or one per picture"),
        ({"image": IMAGE, "mask": [MASK] * 2}, "mask: 2 given for 1 pictures; give one, or one per picture"),
        ({"image": IMAGE, "images": 5}, "images 5: this build serves 1 to 4."),
        ({"image": IMAGE, "paste_back": True}, "paste_back: it needs mask="),
        ({"mask": MASK}, "mask: it needs image="),
        ({"paste_back": True}, "paste_back: it needs mask="),
        ({"strength": 0.5}, "strength: it needs image= or latents="),
        # latents
        ({"image": IMAGE, "latents": LATENTS}, "image, latents: both given; a request starts from one of them"),
        ({"latents": LATENTS, "mask": MASK}, "mask: it needs image="),
        ({"latents": LATENTS[0]}, "latents: shape [4, 96, 128]; they must be (images, 4, height, width)"),
        ({"latents": LATENTS[:, :3]}, "latents: shape [1, 3, 96, 128]; they must be (images, 4, height, width)"),
        ({"latents": LATENTS * np.nan}, "latents: they hold NaN or infinity; nothing can be drawn from them"),
        ({"image": IMAGE, "mask": Image.new("L", IMAGE.size)}, "mask: it is black, so nothing would be drawn anew. "),
        ({"latents": LATENTS, "width": 512}, "width, height: the latents are those of 1024 x 768 pixels; leave both"),
        ({"latents": LATENTS.repeat(2, 3)}, "width 2048: this build serves 512 to 1536"),
        ({"latents": LATENTS.repeat(2, 0)}, "latents: 2 given for 1 pictures; give one, or one per picture"),
        ({"denoising_start": 0.8}, "denoising_start: it needs latents="),
        ({"denoising_start": 0.8, "image": IMAGE}, "denoising_start: it needs latents="),
        (
            {"denoising_start": 0.5, "latents": LATENTS, "strength": 0.1},
            "strength, denoising_start: both given; the request goes on where the other model stopped; leave strength",
        ),
        ({"latents": LATENTS, "paste_back": True}, "paste_back: it needs mask="),
        ({"denoising_start": 1.5, "latents": LATENTS}, "denoising_start 1.5: must be a number from 0 to 1, a share of"),
        ({"denoising_end": "0.8"}, "denoising_end '0.8': must be a number from 0 to 1, a share of the denoising"),
        (
            {"denoising_start": 0.8, "denoising_end": 0.6, "latents": LATENTS},
            "denoising_start 0.8: it must be less than denoising_end (0.6)",
        ),
        # guidance
        ({"guidance": [5.0, 3.0]}, "guidance: 2 given for 1 prompts; give one, or one per prompt"),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5: must be a number from 0 to 1"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval (0.8, 0.2): must be two shares of the steps, from and "),
        ({"guidance_interval": 0.5}, "guidance_interval 0.5: must be two shares of the steps, from and to, such as"),
        ({"guidance_interval": (0, 0.5, 1)}, "guidance_interval (0, 0.5, 1): must be two shares"),
        ({"guidance_interval": (0, 20)}, "guidance_interval (0, 20): must be two shares of the steps"),
        # steps
        ({"schedule": {"karras": True}}, "schedule: karras: no such field; the fields are algorithm_type, beta_end, "),
        ({"schedule": "steep"}, "schedule 'steep': latentrt knows align_your_steps, beta, "),
        ({"schedule": 7}, "schedule 7: must be the name of a schedule, such as 'karras', or a dict of fields, such"),
        ({"timesteps": [1, 2]}, "timesteps [1, 2]: must be a list of numbers that fall"),
        ({"timesteps": [1200, 2]}, "schedule: timesteps 1200, 2: this model was trained on 0 to 999"),
        ({"timesteps": 7}, "timesteps 7: must be a list of numbers that fall, such as [999, 749, 499, 249]"),
        ({"timesteps": []}, "timesteps []: must be a list of numbers that fall"),
        ({"sigmas": [3, -1]}, "sigmas [3, -1]: must be a list of numbers that fall"),
        ({"sigmas": [3, 1], "timesteps": [3, 1]}, "timesteps, sigmas: both given; the schedule is given as one of"),
        ({"sigmas": [3, 1, 0], "steps": 3}, "steps 3, sigmas: these are 2 steps; leave steps out"),
        ({"sigmas": [3, 1], "sampler": "ddim"}, "sigmas: sampler 'ddim' follows its own; those that take sigmas are"),
        ({"sigmas": [3, 1], "schedule": "karras"}, "sigmas, sigma_spacing: both given; sigmas are the whole schedule"),
        ({"schedule": {"timestep_spacing": "odd"}}, "schedule: timestep_spacing 'odd': latentrt "),
        ({"steps": 1000, "sampler": "heun"}, "heun: 1999 evaluations of the U-Net; at most "),
        ({"steps": 1001}, "steps 1001: this checkpoint's schedule takes 1 to 1000"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(pipeline: Pipeline, settings: dict[str, Any], message: str) -> None:
    assert refused(pipeline, **settings).startswith(message)


def test_every_setting_is_known_by_its_name(pipeline: Pipeline) -> None:
    message = refused(pipeline, unknown=1)
    assert message.endswith(", ".join(sorted(Settings.__annotations__)))


OPTIONS = {name: one for name, one in SETTINGS.items() if one.option}


def test_help_and_docs_and_options_follow_from_the_declarations() -> None:
    signature, documented = inspect.signature(Pipeline.generate), Pipeline.generate.__doc__ or ""
    options = {one.name: one for one in get_command(application()).commands["generate"].params}
    for name, setting in SETTINGS.items():
        assert signature.parameters[name].default == setting.default
        assert re.search(rf"^    {name}( \(.*\))?: ", documented, re.M), f"help(Pipeline.generate) lacks {name}"
    for name, setting in OPTIONS.items():
        assert options[name].help.startswith(setting.help)
        assert f"--{name.replace('_', '-')}" in options[name].opts
    given = set(options) - OPTIONS.keys()
    assert not given & SETTINGS.keys(), "an option that is declared as none"
    assert table() == between_markers(PAGE.read_text(encoding="utf-8")), "run python tests/settings_table.py"


def test_functions_that_refuse_a_setting_do_not_show_it() -> None:
    assert "image" not in inspect.signature(generate_large).parameters
    assert "decode" not in inspect.signature(Ensemble.generate).parameters
    assert inspect.signature(Ensemble.refine).parameters["steps"].default is None


@pytest.mark.parametrize("name", ["denoising_start", "denoising_end", "decode"])
def test_what_base_and_refiner_decide_together(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    with refiner(tmp_path) as other, pytest.raises(RequestError, match=f"^{name}: base and refiner decide this toge"):
        Ensemble(pipeline, other).generate("a cat", **{name: 0.5})


@pytest.mark.parametrize("draw", [Ensemble.generate, Ensemble.refine])
def test_a_refiner_keeps_nothing_that_a_mask_keeps(pipeline: Pipeline, tmp_path: Path, draw: Any) -> None:
    with refiner(tmp_path) as other, pytest.raises(RequestError, match=r"^mask, paste_back: the refiner would draw ov"):
        draw(Ensemble(pipeline, other), "a cat", mask=MASK, paste_back=True)


@pytest.mark.parametrize("start", [{"image": IMAGE}, {"latents": LATENTS}])
def test_two_passes_begin_with_a_prompt(pipeline: Pipeline, tmp_path: Path, start: dict[str, Any]) -> None:
    with refiner(tmp_path) as other, pytest.raises(RequestError, match="two passes begin with a prompt alone; draw fi"):
        Ensemble(pipeline, other).refine("a cat", **start)


@pytest.mark.parametrize("share", [0, 1, float("nan"), "0.8", True, np.float32(1)])
def test_a_handover_is_between_the_ends(pipeline: Pipeline, tmp_path: Path, share: Any) -> None:
    message = f"handover {share!r}: must be a number between 0 and 1; the refiner was trained for 0.8 and up"
    with refiner(tmp_path) as other, pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        Ensemble(pipeline, other).generate("a cat", handover=share)


# Embeddings

HIDDEN, POOLED = np.zeros((1, 77, 2048), np.float32), np.zeros((1, 1280), np.float32)
WHOLE = Embeddings(HIDDEN, POOLED, HIDDEN, POOLED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": HIDDEN[..., :768]}, "embeddings: hidden is of shape [1, 77, 768]; this model needs [1, 77, 2048]"),
        (
            {"hidden": HIDDEN[0]},
            "embeddings: hidden has shape [77, 2048]; it must be (prompts, tokens, width) with tok",
        ),
        ({"hidden": HIDDEN[:, :76]}, "embeddings: hidden has shape [1, 76, 2048]; it must be (prompts, tokens, width)"),
        ({"hidden": HIDDEN[:, :0]}, "embeddings: hidden has shape [1, 0, 2048]; it must be (prompts, tokens, width)"),
        ({"pooled": None}, "embeddings: pooled is missing; this model needs [1, 1280]"),
        ({"pooled": POOLED[:, :768]}, "embeddings: pooled is of shape [1, 768]; this model needs [1, 1280]"),
        ({"negative_hidden": None}, "embeddings: negative_hidden is missing; this model needs [1, 77, 2048]"),
        ({"negative_pooled": None}, "embeddings: negative_pooled is missing; this model needs [1, 1280]"),
        (
            {"negative_hidden": np.zeros((1, 154, 2048))},
            "embeddings: negative_hidden is of shape [1, 154, 2048]; this model needs [1, 77, 2048]",
        ),
    ],
)
def test_embeddings_that_the_model_does_not_read(pipeline: Pipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        pipeline.generate(replace(WHOLE, **changes))


@pytest.mark.parametrize("name", ["negative", "prompt_2", "negative_2", "clip_skip"])
def test_embeddings_leave_no_text_to_encode(pipeline: Pipeline, name: str) -> None:
    message = f"{name}, embeddings: both given; embeddings hold the encoded texts, so that it would be dropped. Give it"
    assert refused(pipeline, WHOLE, **{name: 1 if name == "clip_skip" else "blue"}).startswith(message)
    pipeline.request(WHOLE, **{name: 0 if name == "clip_skip" else None})


@pytest.mark.parametrize("field", ["hidden", "pooled", "negative_hidden", "negative_pooled"])
def test_embeddings_that_are_not_finite(pipeline: Pipeline, field: str) -> None:
    assert refused(pipeline, replace(WHOLE, **{field: getattr(WHOLE, field) * np.nan})) == (
        f"embeddings: {field} holds NaN or infinity; nothing can be drawn from it"
    )


def test_embeddings_without_guidance_need_no_negative_ones(pipeline: Pipeline) -> None:
    pipeline.check(pipeline.request(Embeddings(HIDDEN, POOLED), guidance=1.0))
    pipeline.check(pipeline.request(WHOLE))


def test_embeddings_of_another_length_than_is_needed(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match=r"embeddings: 77 tokens, 154 are needed\. Make them with this"):
        pipeline.check(pipeline.request(WHOLE), tokens=154)
    long = Embeddings(*(np.concatenate([part] * 4, 1) if part.ndim == 3 else part for part in (HIDDEN, POOLED) * 2))
    assert "needs 4 chunks of 75 tokens, this build serves up to 3" in refused(pipeline, long)


# The high-resolution fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1}, "scale 1: must be a number above 1; it enlarges the picture before it is drawn again"),
        ({"scale": "2"}, "scale '2': must be a number above 1; it enlarges the picture"),
        ({"scale": np.uint8(2)}, "width 2048: this build serves 512 to 1536 in steps of 8."),
        ({"scale": 2}, "width 2048: this build serves 512 to 1536 in steps of 8."),
        ({"resample": "box"}, "resample 'box': must be one of bicubic, bilinear, lanczos, nearest"),
        ({"enlarge": "tokens"}, "enlarge 'tokens': must be one of latents, pixels"),
        ({"scale": 1.5, "strength": 1.2}, "strength 1.2: must be a number from 0 (keep) to 1 (draw anew)"),
        ({"scale": 1.5, "strength": 0}, "strength 0: none of 30 steps is left to run"),
        ({"image": IMAGE, "mask": MASK}, "image, mask: the high-resolution fix begins with a prompt; leave it out"),
    ],
)
def test_a_large_picture_is_refused_before_the_small_one_is_drawn(
    pipeline: Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        generate_large(pipeline, "a cat", **options)


# Base and refiner


def refiner(folder: Path, **facts: Any) -> Pipeline:
    bundle = write_hollow_bundle(folder / "refiner")
    vae, defaults = facts.pop("vae_sha256", ""), facts.pop("defaults", {})

    def change(manifest: dict[str, Any]) -> None:
        manifest["defaults"] |= defaults
        manifest["model"] |= {"time_ids": list(TIME_IDS[5])} | facts
        manifest["provenance"]["vae_sha256"] = vae

    edit_json(bundle.path / MANIFEST, change)
    return without_engines(Bundle.open(bundle.path))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"scaling_factor": 0.18215}, f"scaling_factor 0.18215, the base's {SDXL.scaling_factor}, so it would not "),
        ({"latent_scale": 4}, "latent_scale 4, the base's 8, so it would not understand the base's latents. Use a "),
        ({"latents_mean": [0.5] * 4}, "latents_mean (0.5, 0.5, 0.5, 0.5), the base's ()"),
    ],
)
def test_a_refiner_whose_vae_differs(pipeline: Pipeline, tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    with refiner(tmp_path, **facts) as other, pytest.raises(RequestError, match=re.escape(f"its VAE has {message}")):
        Ensemble(pipeline, other)


@pytest.mark.parametrize(("hashes", "warned"), [(("a" * 8, "b" * 8), True), (("a", "a"), False), (("a", ""), False)])
def test_another_vae_with_the_same_facts_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hashes: tuple[str, str], warned: bool
) -> None:
    (tmp_path / "base").mkdir()
    base, other = refiner(tmp_path / "base", vae_sha256=hashes[0]), refiner(tmp_path, vae_sha256=hashes[1])
    with caplog.at_level(logging.WARNING, "latentrt.runtime.ensemble"), Ensemble(base, other):
        assert ("its VAE has other weights than the base's" in caplog.text) is warned


def test_the_refiner_goes_on_with_the_bases_seed_steps_and_sampler(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Request] = []

    def run(self: Pipeline, request: Request, progress: object) -> Result:
        ran.append(request)
        return Result([], np.full((1, 4, 64, 96), len(ran), np.float32), {"denoise": 1.0}, request)

    monkeypatch.setattr(Pipeline, "run", run)
    with refiner(tmp_path, defaults={"steps": 50, "sampler": "ddim"}) as other:
        both = Ensemble(pipeline, other)
        result = both.generate("a cat", width=768, height=512, prompt_2="a dog", aesthetic_score=7.0, handover=0.7)
        both.refine("a cat", width=768, height=512, strength=0.4, original_size=(1024, 1024))
    base, refined, _, second = ran
    for one in (base, refined):
        assert (one.seeds, one.steps, one.sampler, one.width, one.height) == (base.seeds, 30, "euler", 768, 512)
    assert (base.settings["denoising_end"], base.settings["decode"], base.prompts_2) == (0.7, False, ("a dog",))
    assert (refined.settings["denoising_start"], refined.settings["decode"], refined.prompts_2) == (0.7, True, (None,))
    assert (base.conditioning.aesthetic_score, refined.conditioning.aesthetic_score) == (None, 7.0)
    assert refined.source is not None
    assert refined.source.latents is not None
    assert (refined.source.latents == 1).all()
    assert result.timings == {"base denoise": 1.0, "denoise": 1.0}
    assert second.source is not None
    assert (second.source.strength, second.settings["denoising_start"]) == (0.4, None)
