"""Names of samplers and schedules in other programs, and what a request makes of them."""

import pytest
from PIL import Image

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import BundleNote, describe
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.request.settings import SETTINGS
from latentrt.runtime.samplers import SAMPLERS, over, sampler_named, schedule_named
from latentrt.runtime.samplers.names import WEBUI_SAMPLERS, WEBUI_SCHEDULES

COMFYUI = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "heun": "heun",
    "dpm_2": "kdpm2",
    "dpm_2_ancestral": "kdpm2_a",
    "lms": "lms",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "deis": "deis",
    "ddim": "ddim",
}
OTHERS = {
    "k_euler_a": "euler_a",
    "k_dpm_2": "kdpm2",
    "sample_dpmpp_2m": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "Euler A": "euler_a",
    "dpm++ 2m": "dpmpp_2m",
}
KARRAS = {"sigma_spacing": "karras"}


@pytest.mark.parametrize(
    ("name", "sampler"),
    [*COMFYUI.items(), *OTHERS.items(), *((theirs, ours) for ours, theirs in WEBUI_SAMPLERS.items())],
)
def test_samplers_of_others(name, sampler):
    found = sampler_named(name)
    assert (found.sampler, dict(found.fields)) == (sampler, {})


@pytest.mark.parametrize("name", SAMPLERS)
def test_our_own_names_stay(name):
    assert sampler_named(name).sampler == name


@pytest.mark.parametrize(
    ("name", "sampler", "fields"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", KARRAS),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde", KARRAS),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", {"sigma_spacing": "exponential"}),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde", KARRAS | {"solver_type": "heun"}),
        ("DPM++ 2S a Karras", "dpmpp_2s_a", KARRAS),
        ("DPM2 a Karras", "kdpm2_a", KARRAS),
        ("Euler SGM Uniform", "euler", {"sigma_spacing": "sgm_uniform"}),
        ("dpmpp_2m_sde_gpu_karras", "dpmpp_2m_sde", KARRAS),
        ("uni_pc_bh2", "unipc", {"solver_type": "bh2"}),
        ("uni_pc", "unipc", {"solver_type": "bh1"}),
    ],
)
def test_what_a_name_implies(name, sampler, fields):
    found = sampler_named(name)
    assert (found.sampler, dict(found.fields)) == (sampler, fields)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DPM adaptive", "sampler 'DPM adaptive': latentrt does not have it: it chooses its steps by what the model"),
        ("ipndm", "latentrt does not have it: the nearest is lms"),
        ("euler_cfg_pp", "latentrt does not have CFG\\+\\+"),
        ("eulre", "no such sampler, the nearest is euler; must be one of ddim, "),
        ("nothing like it", "must be one of ddim, ddpm, "),
    ],
)
def test_samplers_that_are_not_here(name, message):
    with pytest.raises(RequestError, match=message):
        sampler_named(name)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        *((label, spacing) for spacing, label in WEBUI_SCHEDULES.items()),
        ("karras", "karras"),
        ("Uniform", "normal"),
        ("ddim_uniform", "ddim"),
        ("SGMUniform", "sgm_uniform"),
        ("AYS", "align_your_steps"),
    ],
)
def test_schedules_by_name(name, spacing):
    assert schedule_named(name) == {"sigma_spacing": spacing}


def test_a_spacing_takes_the_place_of_another():
    stored = {"use_karras_sigmas": True, "sigma_max": 9.0}
    assert over(stored, {"sigma_spacing": "beta"}) == {"sigma_max": 9.0, "sigma_spacing": "beta"}
    assert over(KARRAS, {"use_beta_sigmas": True}) == {"use_beta_sigmas": True}
    assert over(KARRAS, {"eta": 0.5}) == KARRAS | {"eta": 0.5}


def settings_of(bundle, **settings):
    request = make_request("a cat", settings, bundle.manifest, lambda width, height: None)
    note = BundleNote(name="x", weights_sha256="0", precision="fp16", backend="onnxruntime", device="cpu", build=None)
    return request, describe(note, "a cat", settings, request).settings


def test_the_short_form(bundle):
    request, written = settings_of(bundle, sampler="dpmpp_2m", schedule="karras", seed=1)
    assert (request.sampler, dict(request.schedule)) == ("dpmpp_2m", KARRAS)
    assert (written["sampler"], written["schedule"]) == ("dpmpp_2m", KARRAS)


def test_a_name_and_the_schedule_that_it_implies(bundle):
    request, written = settings_of(bundle, sampler="DPM++ 2M Karras", schedule={"solver_order": 3}, seed=1)
    assert (request.sampler, dict(request.schedule)) == ("dpmpp_2m", KARRAS | {"solver_order": 3})
    assert (written["sampler"], written["schedule"]) == ("dpmpp_2m", KARRAS | {"solver_order": 3})
    request, _ = settings_of(bundle, sampler="DPM++ 2M Karras", schedule="beta", seed=1)
    assert dict(request.schedule) == {"sigma_spacing": "beta"}


def test_align_your_steps_is_that_of_the_family(bundle):
    """The bundle is SDXL's; a model without micro-conditioning takes the other table."""
    request, _ = settings_of(bundle, schedule="Align Your Steps", seed=1)
    assert dict(request.schedule) == {"sigma_spacing": "align_your_steps_xl"}
    model = bundle.manifest.model.model_copy(update={"time_ids": ()})
    manifest = bundle.manifest.model_copy(update={"model": model})
    other = make_request("a cat", {"schedule": "AYS"}, manifest, lambda width, height: None)
    assert dict(other.schedule) == {"sigma_spacing": "align_your_steps_15"}


def test_a_schedule_of_ones_own_gives_the_steps(bundle):
    request, written = settings_of(bundle, sampler="lcm", timesteps=[399], seed=1)
    assert (request.steps, request.schedule_fields["timesteps"]) == (1, (399,))
    assert (written["steps"], written["timesteps"]) == (1, [399])
    assert "schedule" not in written
    request, written = settings_of(bundle, sigmas=[10, 2.5, 0.3, 0], seed=1)
    assert (request.steps, written["sigmas"]) == (3, [10, 2.5, 0.3, 0])


def test_image_to_image_counts_ones_own_steps(bundle):
    request, _ = settings_of(
        bundle, timesteps=[900, 600, 300, 50], image=Image.new("RGB", (1024, 1024)), strength=0.5, seed=1
    )
    assert (request.steps, request.source.strength) == (4, 0.5)


def test_the_command_lines_forms():
    assert SETTINGS["schedule"].kind.parse(["karras", "eta=0.5"]) == KARRAS | {"eta": 0.5}
    for text in ("999,500.5", "[999, 500.5]", " 999 , 500.5 "):
        assert SETTINGS["timesteps"].kind.parse(text) == [999, 500.5]
    for text in ("", "[]", "999;500", "[true]", "9,,8"):
        with pytest.raises(ValueError, match="is not a list of numbers, such as 999,749,499,249"):
            SETTINGS["sigmas"].kind.parse(text)
