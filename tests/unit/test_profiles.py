"""Sizes that engines are built for: static builds, several optimisation profiles, guided or unguided requests alone."""

from itertools import pairwise

import pytest
from hollow_bundles import LIMITS, PRECISIONS, SDXL, write_hollow_build

from latentrt.export.checks.parity import case_sizes
from latentrt.runtime.backends.targets import cpu_target
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits, SizeProfile
from latentrt.runtime.bundle.specs import ComponentSpec, Dim, port
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.serve.previews import _small_size

PORTRAIT = ("1024x1024", "832x1216")
ONE_SIZE = {"width": "1024", "height": "832", "images": "1", "tokens": "77"}
ROWS = {"latent_height": 104, "latent_width": 128, "tokens": 77}


def specs(limits, model=SDXL):
    return component_specs(model, limits, PRECISIONS)


def ranges(spec):
    """Every profile as text, without the dims that are the same in all."""
    return list(spec.profile_table)


# Limits


def test_profiles_are_sizes_or_ranges_and_read_back():
    limits = LIMITS.replace(profiles=[*PORTRAIT, "512:768:1536x512:768:1536", "832x1216"])
    assert [str(profile) for profile in limits.profiles] == [*PORTRAIT, "512:768:1536x512:768:1536"]
    assert (str(limits.width), str(limits.height)) == ("512:1024:1536", "512:1024:1536")
    assert Limits.model_validate_json(limits.model_dump_json()) == limits
    assert limits.replace(images="1") == LIMITS.replace(images="1", profiles=limits.profiles)


def test_a_new_width_takes_the_place_of_profiles():
    limits = LIMITS.replace(profiles=PORTRAIT)
    assert limits.replace(width="640").profiles == ()
    assert limits.replace(profiles=()).profiles == ()
    assert str(limits.replace(profiles=()).width) == "832:1024:1024"


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (["1024"], "^profile 1024: a profile is WIDTHxHEIGHT, such as 832x1216; both may be min:opt:max$"),
        (["1024x"], "^height : a range is written min:opt:max"),
        (["1024x1020"], "^height 1020:1020:1020: every bound must be a multiple of 8$"),
        (["512:1024x900:512"], "^height 900:512:512: a range is min:opt:max with"),
    ],
)
def test_what_is_no_profile(profiles, message):
    with pytest.raises(RequestError, match=message):
        LIMITS.replace(profiles=profiles)


def test_profiles_beside_a_width_are_refused():
    with pytest.raises(
        RequestError, match=r"^profiles and height and width: each says which sizes are served\. Give one of them$"
    ):
        LIMITS.replace(profiles=PORTRAIT, width="512", height="512")


def test_an_unknown_kind_of_guidance_is_refused():
    with pytest.raises(RequestError, match=r"^guidance maybe: must be one of any, on, off$"):
        LIMITS.replace(guidance="maybe")


def test_ranges_that_are_not_those_around_the_profiles_are_refused():
    changed = LIMITS.replace(profiles=PORTRAIT).model_dump() | {"width": "512:512:512"}
    with pytest.raises(RequestError, match="are not the ranges around the profiles"):
        Limits(**changed)


def test_a_profile_is_not_parsed_twice():
    profile = SizeProfile.parse("64x64")
    assert SizeProfile.parse(profile) is profile
    assert (64, 64) in profile
    assert (64, 72) not in profile


# What components are built for


def test_ranges_are_one_profile():
    for spec in specs(LIMITS).values():
        assert spec.profiles == (spec.dims,)
        assert spec.profile_table == ()


def test_every_size_is_a_profile_of_the_components_that_have_one():
    found = specs(LIMITS.replace(profiles=PORTRAIT))
    sizes = [{"latent_height": "128", "latent_width": "128"}, {"latent_height": "152", "latent_width": "104"}]
    for name in ("unet", "vae_decoder", "vae_encoder"):
        assert ranges(found[name]) == sizes
    for name in ("text_encoder", "text_encoder_2", "sampler"):
        assert ranges(found[name]) == []
    assert str(found["unet"].dims["latent_height"]) == "128:128:152"
    assert str(found["sampler"].dims["latent_width"]) == "104:128:128"


def test_a_single_size_and_image_leave_two_numbers_of_rows():
    unet = specs(LIMITS.replace(**ONE_SIZE))["unet"]
    assert ranges(unet) == [{"rows": "2"}, {"rows": "1"}]
    assert all(dim.is_static for profile in unet.profiles for dim in profile.values())
    assert [unet.profile_of(ROWS | {"rows": rows}) for rows in (1, 2)] == [1, 0]


@pytest.mark.parametrize(("guidance", "rows"), [("on", 6), ("off", 3)])
def test_with_or_without_guidance_alone_everything_is_one_number(guidance, rows):
    found = specs(LIMITS.replace(**ONE_SIZE | {"images": "3"}, guidance=guidance))
    for name in ("unet", "vae_decoder", "vae_encoder"):
        assert ranges(found[name]) == []
        assert all(dim.is_static for dim in found[name].dims.values())
    assert found["unet"].sizes("opt")["rows"] == found["sampler"].sizes("opt")["rows"] == rows
    assert not found["text_encoder"].dims["texts"].is_static  # texts that are known are not encoded again


def test_of_several_images_some_may_be_unguided():
    unet = specs(LIMITS.replace(**ONE_SIZE | {"images": "2"}))["unet"]
    assert ranges(unet) == [{"rows": "3:4:4"}, {"rows": "2"}]
    assert [unet.profile_of(ROWS | {"rows": rows}) for rows in (2, 3, 4)] == [1, 0, 0]


def test_each_size_has_both_numbers_of_rows():
    unet = specs(LIMITS.replace(profiles=PORTRAIT, images="1"))["unet"]
    assert [(row["latent_width"], row["rows"]) for row in ranges(unet)] == [
        ("128", "2"),
        ("128", "1"),
        ("104", "2"),
        ("104", "1"),
    ]


def test_a_model_that_takes_the_guidance_scale_never_needs_negative_rows():
    model = SDXL.model_copy(update={"guidance_embedding": 256})
    assert ranges(specs(LIMITS.replace(images="1", guidance="off"), model)["unet"]) == []
    with pytest.raises(RequestError, match=r"^guidance on: this model takes the guidance scale as an input, and never"):
        specs(LIMITS.replace(guidance="on"), model)


def test_limits_of_one_number_are_the_same_whatever_the_profiles():
    """A profile of one size is that size."""
    by_profile = specs(LIMITS.replace(profiles=["1024x832"], images="1"))["unet"]
    assert by_profile == specs(LIMITS.replace(width="1024", height="832", images="1"))["unet"]


# The tightest profile


@pytest.fixture
def spec():
    def profile(width, rows):
        return {"width": Dim("width", *width), "rows": Dim("rows", *rows)}

    return ComponentSpec(
        "painter",
        (port("canvas", "float16", "rows", "width"),),
        (port("picture", "float16", "rows", "width"),),
        profile((8, 16, 32), (1, 2, 4)),
        (
            profile((8, 16, 32), (1, 2, 4)),
            profile((16, 16, 16), (1, 2, 4)),
            profile((16, 16, 16), (2, 2, 2)),
            profile((8, 8, 16), (1, 1, 1)),
        ),
    )


@pytest.mark.parametrize(
    ("width", "rows", "number"), [(16, 2, 2), (16, 3, 1), (24, 2, 0), (24, 1, 0), (8, 1, 3), (16, 1, 1)]
)
def test_the_tightest_profile_serves(spec, width, rows, number):
    assert spec.profile_of({"width": width, "rows": rows}) == number


def test_sizes_between_profiles_are_refused(spec):
    narrow = ComponentSpec(spec.name, spec.inputs, spec.outputs, spec.dims, spec.profiles[2:])
    message = (
        r"^painter: rows 2, width 12 is served by no profile of this build, which serves rows 2, width 16 or "
        r"rows 1, width 8:8:16$"
    )
    for refuse in (narrow.check, narrow.profile_of):
        with pytest.raises(RequestError, match=message):
            refuse({"width": 12, "rows": 2})
    with pytest.raises(RequestError, match=r"^painter: width 99 is outside 8 to 32$"):
        narrow.check({"width": 99, "rows": 1})


def test_equal_profiles_are_one(spec):
    again = ComponentSpec(spec.name, spec.inputs, spec.outputs, spec.dims, (*spec.profiles, *spec.profiles))
    assert again == spec


def test_parity_compares_sizes_that_are_served():
    found = specs(LIMITS.replace(profiles=PORTRAIT, images="1"))
    for spec in found.values():
        cases = dict(case_sizes(spec, "quick"))
        assert cases
        assert all(spec.profiles_of(sizes) for sizes in cases.values())
    assert [name for name, _ in case_sizes(found["vae_decoder"], "full")] == ["opt", "non-square"]
    assert [name for name, _ in case_sizes(found["vae_decoder"], "quick")] == ["profile 1", "profile 2"]
    assert list(case_sizes(found["vae_decoder"], "off")) == []


# Requests


def served(bundle, **limits):
    """A pipeline, without engines, of a build with these limits."""
    write_hollow_build(bundle, "onnxruntime", cpu_target(), LIMITS.replace(**limits))
    selection = select(bundle)
    return Pipeline(bundle, selection, selection.open(), {})


def test_a_size_without_a_profile_lists_those_that_there_are(bundle):
    pipe = served(bundle, profiles=PORTRAIT)
    pipe.check(pipe.request("a cat", width=832, height=1216))
    message = (
        r"^size 1024x1216: this build serves 1024x1024, 832x1216\. Rebuild with: build-engine \S+ --backend "
        r"onnxruntime --profile 1024x1024 --profile 832x1216 --profile 1024x1216$"
    )
    with pytest.raises(RequestError, match=message):
        pipe.check(pipe.request("a cat", width=1024, height=1216))
    with pytest.raises(RequestError, match=r"^width 1020: must be a multiple of 8; the nearest are 1016 and 1024$"):
        pipe.check(pipe.request("a cat", width=1020, height=1024))


@pytest.mark.parametrize(
    ("guidance", "settings", "message"),
    [
        ("on", {"guidance": 5}, None),
        ("on", {"guidance": 1}, "guided steps alone. Ask for guidance above 1 for every prompt, on all steps, or"),
        ("on", {"guidance": [5, 1]}, "guided steps alone"),
        ("on", {"guidance": 5, "guidance_interval": (0.2, 0.8)}, "guided steps alone"),
        ("off", {"guidance": 1}, None),
        ("off", {"guidance": 5}, "no guided requests. Ask for guidance 1, or rebuild with: build-engine"),
        ("any", {"guidance": 5}, None),
        ("any", {"guidance": 1}, None),
    ],
)
def test_guidance_that_is_not_served(bundle, guidance, settings, message):
    pipe = served(bundle, guidance=guidance)
    request = pipe.request(["a cat", "a dog"], **settings)
    if message is None:
        pipe.check(request)
        return
    with pytest.raises(RequestError, match=f"^guidance: this build serves {message}"):
        pipe.check(request)


def test_without_guidance_rows_are_one_per_picture(bundle):
    pipe = served(bundle, guidance="off", images="1:1:2")
    several = {"guidance": 1, "prompt_syntax": "a1111"}
    pipe.check(pipe.request("a :0.5 AND b :0.5", **several))
    message = r"^prompt: its parts, joined by AND, make 3 rows .*serves 2\. .*--images 1:1:3 --guidance off$"
    with pytest.raises(RequestError, match=message):
        pipe.check(pipe.request("a :0.5 AND b :0.25 AND c :0.25", **several))


def test_previews_are_fitted_at_a_size_that_is_served(bundle):
    assert _small_size(served(bundle)) == (512, 512)
    assert _small_size(served(bundle, width="640:768:1024", height="256:256:384")) == (640, 384)
    assert _small_size(served(bundle, profiles=PORTRAIT)) == (832, 1216)


def test_a_loaded_build_names_its_own_limits_in_commands(bundle):
    write_hollow_build(bundle, "onnxruntime", cpu_target(), LIMITS.replace(profiles=PORTRAIT, guidance="on"))
    selection = select(bundle)
    with Pipeline(bundle, selection, selection.open(), {}) as pipe:
        command = pipe.rebuild_command(pipe.limits)
    assert command.endswith("--backend onnxruntime --profile 1024x1024 --profile 832x1216 --guidance on")


def test_engines_of_other_profiles_are_stale(bundle):
    keys = [
        bundle.keys(
            bundle.manifest.specs(LIMITS.replace(profiles=profiles)),
            backend="tensorrt",
            backend_version="1",
            target="x",
            latentrt="0",
            options=str,
            rewritten=False,
        )
        for profiles in (PORTRAIT, (*PORTRAIT, "1024x832"), (*PORTRAIT, "832x1024"))
    ]
    for one, other in pairwise(keys):
        assert one["text_encoder"].difference(other["text_encoder"]) is None
        assert one["unet"].difference(other["unet"])
    assert keys[1]["vae_decoder"].difference(keys[2]["vae_decoder"]) == (
        "dims latent_height 104:128:152, needed latent_height 128:128:152"
    )
