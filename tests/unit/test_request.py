"""Requests are refused before anything runs: the pipelines here have no engines at all."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hollow_bundles import LIMITS, SDXL, without_engines, write_hollow_bundle

from latentrt.export.family import TIME_IDS
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.request.settings import SETTINGS
from latentrt.runtime.request.size_checks import check_tokens
from latentrt.runtime.samplers import SAMPLERS

SERVED = {"prompt": "a cat", "steps": 4, "guidance": 5.0, "seed": 1, "width": 1024, "height": 1024}


def request(model=SDXL, **changes):
    """A request to a bundle of this model; no pipeline, and no build, has a say."""
    settings = SERVED | changes
    manifest = SimpleNamespace(model=model, defaults=Defaults(sampler="euler", steps=30, guidance=5.0))
    return make_request(settings.pop("prompt"), settings, manifest, lambda width, height: None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Named by a relative path, as a user would."""
    folder = tmp_path_factory.mktemp("request")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bundle = write_hollow_bundle(folder / "my-bundle")
        bundle.path = bundle.path.relative_to(folder)
        yield bundle


@pytest.fixture(scope="module")
def pipeline(bundle):
    return without_engines(bundle)


def refused(pipeline, **changes):
    """The message with which a pipeline refuses a request."""
    with pytest.raises(RequestError) as caught:
        pipeline.generate(**(SERVED | changes))
    return str(caught.value)


def command(options):
    return f"Rebuild with: build-engine my-bundle --backend onnxruntime {options}"


def test_a_request_that_is_served_reaches_the_engines(pipeline):
    with pytest.raises(KeyError, match="text_encoder"):
        pipeline.generate(**SERVED)


@pytest.mark.parametrize("name", ["width", "height"])
def test_a_size_above_the_range(pipeline, name):
    assert refused(pipeline, **{name: 1600}) == (
        f"{name} 1600: this build serves 512 to 1536 in steps of 8. {command(f'--{name} 512:1024:1600')}"
    )


def test_a_size_below_the_range(pipeline):
    assert refused(pipeline, width=256).endswith(command("--width 256:1024:1536"))


def test_the_command_names_the_backend_that_is_asked(bundle):
    message = "Rebuild with: build-engine my-bundle --backend tensorrt --width 512:1024:1600"
    with pytest.raises(RequestError, match=f"{re.escape(message)}$"):
        request(width=1600).check(LIMITS, lambda limits: bundle.build_command("tensorrt", limits))


def test_a_size_of_a_static_build(bundle):
    limits = LIMITS.replace(height="1024")
    with pytest.raises(RequestError, match=r"^height 512: this build serves 1024 only\. .* --height 512:1024:1024$"):
        request(height=512).check(limits, lambda limits: bundle.build_command("onnxruntime", limits))


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("width", 1001, "nearest are 1000 and 1008"),
        ("height", 1023, "nearest are 1016 and 1024"),
        ("width", 2001, "nearest that is served is 1536"),
        ("width", 4, "nearest that is served is 512"),
    ],
)
def test_a_size_that_is_no_multiple_of_8(pipeline, name, size, nearest):
    assert refused(pipeline, **{name: size}) == f"{name} {size}: must be a multiple of 8; the {nearest}"


@pytest.mark.parametrize("size", [512, 520, 1016, 1048, 1536])
def test_every_multiple_of_8_is_served(bundle, size):
    request(width=size, height=size).check(LIMITS, lambda limits: bundle.build_command("onnxruntime", limits))


@pytest.mark.parametrize("value", [0, -8, 1.5, float("nan"), "8", True, [8], 2 + 0j])
@pytest.mark.parametrize("name", ["steps", "images", "width", "height"])
def test_counts_and_sizes_are_whole_numbers(name, value):
    message = f"{name} {value!r}: must be a whole number of at least 1"
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        request(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", 1.5), ("images", "2"), ("width", "wide")])
def test_counts_and_sizes_through_the_pipeline(pipeline, name, value):
    assert refused(pipeline, **{name: value}) == f"{name} {value!r}: must be a whole number of at least 1"


def test_none_means_not_given(pipeline):
    nothing = dict.fromkeys(SETTINGS, None)
    assert pipeline.request("a cat", **(nothing | {"seed": 1})) == pipeline.request("a cat", seed=1)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("value", [..., "\x00", -1, float("nan"), [], [None, {}], {"a": 1}, b"x"], ids=repr)
def test_a_value_of_any_kind_is_served_or_refused_by_us(pipeline, name, value):
    try:
        pipeline.request("a cat", **{name: value})
    except RequestError:
        return


def test_more_steps_than_the_schedule_has(pipeline):
    assert refused(pipeline, steps=1001) == "steps 1001: this checkpoint's schedule takes 1 to 1000"


def test_numbers_of_numpy_are_numbers(pipeline):
    whole = request(steps=np.int64(4), width=np.int32(1024), guidance=np.float32(2), seed=np.uint64(7))
    assert whole.guided
    for found in (whole.steps, whole.width, *whole.guidance, *whole.seeds):
        assert type(found) in (int, float)  # numpy's own would overflow later: np.uint8(7) * 100
    with pytest.raises(KeyError, match="text_encoder"):
        pipeline.generate(**(SERVED | {"seed": np.int64(3), "steps": np.int64(2)}))


@pytest.mark.parametrize("value", [-1, -0.01, float("nan"), float("inf"), float("-inf"), "5", True, 1j])
def test_guidance_is_a_number_of_0_or_more(value):
    message = f"guidance {value!r}: must be a number from 0 to 1000; 1 and below turn guidance off, 5 is usual"
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        request(guidance=value)


@pytest.mark.parametrize(("scale", "guided"), [(0, False), (0.5, False), (1, False), (1.01, True), (7, True)])
def test_guidance_above_1_is_guided(scale, guided):
    assert request(guidance=scale).guided is guided


@pytest.mark.parametrize("name", ["odd one", "", 3, ["euler"]])
def test_an_unknown_sampler_names_the_known_ones(pipeline, name):
    message = refused(pipeline, sampler=name)
    assert message == f"sampler {name!r}: must be one of {', '.join(sorted(SAMPLERS))}"
    assert "dpmpp_2m, dpmpp_2m_sde, dpmpp_2s" in message


SEEDS = "a whole number from 0 to 18446744073709551615, or -1 for a fresh one"


@pytest.mark.parametrize("seed", [-2, 2**64, 1.5, "7", True, float("nan")])
def test_a_seed_out_of_range(pipeline, seed):
    assert refused(pipeline, seed=seed) == f"seed {seed!r}: must be {SEEDS}"
    assert refused(pipeline, seed=[seed]) == f"seed {seed!r}: must be {SEEDS}"


@pytest.mark.parametrize("seeds", [[], [1, 2], [1, 2, 3, 4]])
def test_seeds_are_one_or_one_per_picture(pipeline, seeds):
    message = f"seed: {len(seeds)} given for 3 pictures; give one, or one per picture"
    assert refused(pipeline, seed=seeds, images=3) == message
    assert refused(pipeline, seed=seeds, prompt=["a", "b", "c"]) == message


@pytest.mark.parametrize("settings", [{}, {"seed": None}, {"seed": -1}, {"seed": [-1]}, {"seed": np.int8(-1)}])
def test_no_seed_draws_one_and_tells_it(pipeline, settings):
    told = [pipeline.request("a cat", **settings).seeds for _ in range(2)]
    assert all(0 <= seed < 2**32 for (seed,) in told)
    assert told[0] != told[1]


def test_no_prompt_at_all(pipeline):
    assert refused(pipeline, prompt=[]) == "prompt: an empty list; give at least one prompt (an empty text is allowed)"


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        (None, "None"),
        (5, "5"),
        (b"a cat", "b'a cat'"),
        ({"a": 1}, "{'a': 1}"),
        (["a cat", None], "None"),
        ([["a"]], "['a']"),
    ],
)
def test_a_prompt_that_is_no_text(pipeline, prompt, part):
    assert refused(pipeline, prompt=prompt) == f"prompt {part}: must be text"


def test_half_a_surrogate_pair_is_no_text(pipeline):
    assert refused(pipeline, prompt="a \ud83d").startswith("prompt holds U+D83D at position 2")


def test_an_empty_prompt_is_text(pipeline):
    with pytest.raises(KeyError, match="text_encoder"):
        pipeline.generate(**(SERVED | {"prompt": ""}))


@pytest.mark.parametrize("negatives", [[], ["x", "y", "z"]])
def test_negatives_are_one_or_one_per_prompt(pipeline, negatives):
    message = f"negative: {len(negatives)} given for 2 prompts; give one, or one per prompt"
    assert refused(pipeline, prompt=["a", "b"], negative=negatives) == message


def test_a_negative_that_is_no_text(pipeline):
    assert refused(pipeline, negative=5) == "negative 5: must be text"
    assert refused(pipeline, negative=[["x"]]) == "negative ['x']: must be text"


def test_one_negative_serves_every_prompt():
    assert request(prompt=["a", "b", "c"], negative="x").negatives == ("x", "x", "x")
    assert request(prompt=["a", "b"]).negatives == (None, None)
    assert request(prompt=["a", "b"], negative=["x", None]).negatives == ("x", None)


def test_more_images_than_are_served(pipeline):
    options = command("--images 1:1:5")
    assert refused(pipeline, images=5) == f"images 5: this build serves 1 to 4. {options}"
    assert refused(pipeline, prompt=list("abcde")) == f"images 5: this build serves 1 to 4. {options}"
    assert refused(pipeline, prompt=list("abc"), images=2).startswith("images 6: this build serves 1 to 4")


def test_a_prompt_of_10000_words(pipeline):
    started = time.perf_counter()
    message = refused(pipeline, prompt="zebra crossing " * 5000)
    assert time.perf_counter() - started < 5
    found = re.fullmatch(
        r"prompt 'zebra crossing zebra crossing …': it needs (\d+) chunks of 75 tokens, this build serves up to 3\. "
        r"Shorten it, or rebuild with: build-engine my-bundle --backend onnxruntime --tokens 77:77:(\d+)",
        message,
    )
    assert found, message
    assert int(found[1]) > 10000 // 75
    assert int(found[2]) == 77 * int(found[1])


def test_the_prompt_that_is_too_long_is_the_one_that_is_named(pipeline):
    long = "blurry " * 5000
    assert refused(pipeline, negative=long).startswith("prompt 'blurry blurry blurry blurry bl…': it needs ")
    assert refused(pipeline, prompt=["a cat", long]).startswith("prompt 'blurry ")


def test_a_negative_that_guidance_does_not_use_costs_no_tokens(pipeline):
    assert request(negative="x", guidance=1.0).texts == {"a cat"}
    assert request(negative="x", guidance=2.0).texts == {"a cat", "x"}
    with pytest.raises(KeyError, match="text_encoder"):
        pipeline.generate(**(SERVED | {"negative": "blurry " * 5000, "guidance": 1.0}))


def test_as_many_tokens_as_are_served():
    check_tokens(231, LIMITS, lambda limits: "", "a cat")
    with pytest.raises(RequestError, match=r"^prompt 'a cat': it needs 4 chunks of 75 tokens, .* --tokens 77:77:308$"):
        check_tokens(308, LIMITS, lambda limits: f"--tokens {limits.tokens}", "a cat")


@pytest.mark.parametrize("pair", [(1024,), (1, 2, 3), (-1, 0), (0.5, 1), "12", (True, 1), 1024])
@pytest.mark.parametrize("name", ["original", "crop", "target"])
def test_micro_conditioning_is_pairs_of_numbers(name, pair):
    spelled = name if name == "crop" else f"{name} size"
    message = f"{spelled} {pair!r}: must be two whole numbers of at least 0, (height, width) or (top, left)"
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        MicroConditioning(**{name: pair})


def test_micro_conditioning_defaults_to_the_size_asked():
    names = SDXL.time_ids
    assert MicroConditioning().time_ids(names, 768, 512, 6.0) == (768, 512, 0, 0, 768, 512)
    named = MicroConditioning(original=(100, 200), crop=(3, 4), target=[500, 600])
    assert named.time_ids(names, 768, 512, 6.0) == (100, 200, 3, 4, 500, 600)


# What the checkpoint does not do

BARE = SDXL.model_copy(update={"time_ids": (), "text_encoders": SDXL.text_encoders[:1]})
REFINER = SDXL.model_copy(update={"time_ids": TIME_IDS[5], "text_encoders": SDXL.text_encoders[1:]})


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            SDXL.model_copy(update={"unet_channels": 9}),
            {},
            "this model is for inpainting: its U-Net takes 9 channels, which hold an image and a mask too. Give image= "
            "and mask=",
        ),
        (BARE, {"prompt_2": "x"}, "prompt_2, negative_2: this model has one text encoder; put all into "),
        (
            REFINER,
            {"negative_2": "x"},
            "prompt_2, negative_2: this model has one text encoder; put all into prompt ",
        ),
        (BARE, {"clip_skip": 12}, "clip_skip 12: this model's text encoders serve 0 to 11"),
        (REFINER, {"clip_skip": 32}, "clip_skip 32: this model's text encoders serve 0 to 31"),
        (
            BARE,
            {"crop": (8, 8)},
            "original size, crop, target size, aesthetic score: this model has no micro-conditioning",
        ),
        (
            BARE,
            {"negative_conditioning": MicroConditioning(original=[8, 8])},
            "original size, crop, target size, aesthetic score: this model has no micro-conditioning",
        ),
        (
            SDXL,
            {"aesthetic_score": 6.0},
            "aesthetic score: only SDXL's refiner takes one; leave it out",
        ),
        (
            SDXL.model_copy(update={"latent_scale": 16}),
            {"width": 1032},
            "width 1032: this model's VAE needs multiples of 16",
        ),
    ],
)
def test_what_a_model_does_not_do(model, changes, message):
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        request(model, **changes).check_model(model)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (SDXL, {"prompt_2": "x", "negative_2": None, "clip_skip": 11}),
        (BARE, {"prompt_2": None, "negative_2": [None], "negative_conditioning": MicroConditioning()}),
        (REFINER, {"clip_skip": 31, "crop": (8, 8), "aesthetic_score": 9}),
    ],
)
def test_what_a_model_does(model, changes):
    request(model, **changes).check_model(model)


def test_the_model_is_asked_before_anything_runs(pipeline):
    assert refused(pipeline, clip_skip=12) == "clip_skip 12: this model's text encoders serve 0 to 11"
    assert refused(pipeline, aesthetic_score=6.0).startswith("aesthetic score: only SDXL's refiner takes one")
    assert refused(pipeline, negative_aesthetic_score=2.0).startswith("aesthetic score: only SDXL's refiner takes one")


@pytest.mark.parametrize("value", [-1, 1.5, "1", True])
def test_clip_skip_is_a_whole_number(pipeline, value):
    assert refused(pipeline, clip_skip=value) == f"clip_skip {value!r}: must be a whole number of at least 0"


@pytest.mark.parametrize("score", ["6", True, [6.0]])
def test_an_aesthetic_score_is_a_number(score):
    with pytest.raises(
        RequestError, match=rf"^aesthetic score {re.escape(repr(score))}: must be a number, usually 1 to"
    ):
        MicroConditioning(aesthetic_score=score)


@pytest.mark.parametrize("name", ["prompt_2", "negative_2"])
def test_second_prompts_are_one_or_one_per_prompt(pipeline, name):
    message = f"{name}: 3 given for 2 prompts; give one, or one per prompt"
    assert refused(pipeline, prompt=["a", "b"], **{name: ["x", "y", "z"]}) == message
    assert refused(pipeline, **{name: 5}) == f"{name} 5: must be text"


def test_second_prompts_count_their_tokens(pipeline):
    long = "blurry " * 5000
    assert refused(pipeline, prompt_2=long).startswith("prompt 'blurry ")
    assert refused(pipeline, negative_2=long).startswith("prompt 'blurry ")


def test_aesthetic_scores_default_to_the_branch():
    assert MicroConditioning().time_ids(TIME_IDS[5], 768, 512, 2.5) == (768, 512, 0, 0, 2.5)
    assert MicroConditioning(aesthetic_score=9).time_ids(TIME_IDS[5], 768, 512, 2.5) == (768, 512, 0, 0, 9)


def test_a_text_is_no_request(pipeline):
    for call in (pipeline.begin, pipeline.run, pipeline.check):
        with pytest.raises(RequestError, match=r"^request: a str; make one with this pipeline's `request`$"):
            call("a cat")
