"""Prompts in AUTOMATIC1111's syntax: its own published examples, and what a request makes of them."""

import logging
from itertools import chain

import numpy as np
import pytest

from latentrt.demo import CHECKPOINT
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.drawing.guidance import guidance_rows
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler
from latentrt.runtime.text.a1111_weights import chunks, emphasised, parse_attention
from latentrt.runtime.text.prompt_plan import check_plan, plan_prompt, plan_request
from latentrt.runtime.text.prompt_schedule import texts_by_step
from latentrt.runtime.text.token_rows import token_rows
from latentrt.runtime.text.tokenizer import Tokenizer

EPSILON = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        # the examples of modules/prompt_parser.py
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        # and what follows from its rules
        ("", []),
        ("[word]", [("word", 1 / 1.1)]),
        ("[[word]]", [("word", 1 / 1.21)]),
        ("((word))", [("word", 1.21)]),
        ("(a [b] c:2)", [("a ", 2), ("b", 2 / 1.1), (" c", 2)]),
        ("(word:-1)", [("word", -1)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("time 12:30, 16:9)", [("time 12:30, 16:9)", 1)]),
        (r"back\\slash", [(r"back\slash", 1)]),
        (r"lost\slash", [("lostslash", 1)]),
        ("(style: anime)", [("style: anime", 1.1)]),
    ],
)
def test_attention(prompt: str, fragments: list[tuple[str, float]]) -> None:
    (found,) = parse_attention(prompt)
    assert [(one.text, one.weight) for one in found if one.text] == [
        (text, pytest.approx(weight)) for text, weight in fragments
    ]


def test_break_divides() -> None:
    parts = parse_attention("a (b:2) BREAK  c BREAKFAST\nBREAK d")
    assert ["".join(one.text for one in part) for part in parts] == ["a b", "c BREAKFAST", "d"]


ALTERNATING = [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]
FEMALE = [(step, "female" if step % 2 else "male") for step in range(1, 11)]
RARELY_FEMALE = [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        # the examples of modules/prompt_parser.py, for ten steps
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", ALTERNATING),
        ("[fe|]male", FEMALE),
        ("[fe|||]male", RARELY_FEMALE),
        # its comment on a hundred steps, in ten
        (
            "a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6][ in background:0.25]",
            [
                (2, "a mountain and an oak in foreground"),
                (6, "a lake and an oak in foreground in background"),
                (7, "a lake and an oak in background"),
                (10, "a lake and a christmas tree in background"),
            ],
        ),
        # and what follows from its rules
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:20]", [(10, "a")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[word]", [(10, "[word]")]),
        ("a | b", [(10, "a | b")]),
        (r"\[a:b:3]", [(10, r"\[a:b:3]")]),
        (r"[a\:b:c:3]", [(3, r"a\:b"), (10, "c")]),
    ],
)
def test_prompts_that_change(prompt: str, texts: list[tuple[int, str]]) -> None:
    assert texts_by_step(prompt, 10) == texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(CHECKPOINT / "tokenizer")


def test_a_comma_near_the_end_of_a_chunk_takes_the_rest_along(tokenizer: Tokenizer) -> None:
    """Twenty tokens behind a comma go into the next chunk, more stay; so does a comma that itself begins a chunk."""
    word = "star"
    star = tokenizer.encode(word)
    assert len(star) == 1
    (comma,) = tokenizer.encode(",")
    for before, after, sizes in ((55, 30, [56, 30]), (54, 30, [75, 10]), (74, 5, [75, 5]), (75, 5, [75, 6])):
        prompt = f"{word} " * before + ", " + f"{word} " * after
        found = [[token for token, _ in chunk] for chunk in chunks(tokenizer, prompt)]
        assert [len(chunk) for chunk in found] == sizes, (before, after)
        assert list(chain(*found)) == star * before + [comma] + star * after


def test_break_fills_a_chunk_up(tokenizer: Tokenizer) -> None:
    rows, weights = token_rows(tokenizer, "red BREAK (circle:1.5) BREAK", "a1111")
    np.testing.assert_array_equal(rows, np.concatenate([tokenizer.chunks("red"), tokenizer.chunks("circle")]))
    count = len(tokenizer.encode("circle"))
    np.testing.assert_array_equal(np.flatnonzero(weights[1] != 1), np.arange(1, 1 + count))
    assert (weights[0] == 1).all()
    assert len(token_rows(tokenizer, "BREAK red", "a1111")[0]) == 2


def test_emphasis_keeps_each_chunks_mean() -> None:
    """Hidden states times weights, then scaled to the mean they had."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((2, 77, 8)).astype(np.float32) + 0.3
    weights = np.ones((2, 77), np.float32)
    weights[1, 3:6] = 1.4
    moved = emphasised(hidden, weights)
    np.testing.assert_array_equal(moved[0], hidden[0])
    assert moved[1].mean() == pytest.approx(hidden[1].mean(), rel=1e-5)
    scaled = hidden[1] * weights[1][:, None]
    np.testing.assert_allclose(moved[1], scaled * hidden[1].mean() / scaled.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", {"a cat": 1}),
        ("a cat AND a dog", {"a cat": 1, " a dog": 1}),
        ("a cat :1.2 AND a dog :0.5", {"a cat": 1.2, " a dog": 0.5}),
        ("a cat AND a dog:-.5", {"a cat": 1, " a dog": -0.5}),
        ("a cat AND a cat", {"a cat": 1, " a cat": 1}),
        ("ANDROID AND b", {"ANDROID": 1, " b": 1}),
        ("(a cat:1.2)", {"(a cat:1.2)": 1}),
        ("a cat :2", {"a cat": 2}),
    ],
)
def test_and_joins_with_weights(prompt: str, parts: dict[str, float]) -> None:
    plan = plan_prompt(prompt, "a1111", 3, True)
    assert dict(zip(plan.texts, plan.weights[0], strict=True)) == parts
    assert (plan.weights == plan.weights[0]).all()


def test_parts_change_each_on_their_own() -> None:
    """Steps count from 0, and the one that is named still draws the first text (reconstruct_cond_batch)."""
    plan = plan_prompt("[a:b:2] AND c :0.5", "a1111", 4, True)
    assert plan.texts == ("a", "b", " c")
    np.testing.assert_array_equal(plan.weights, [[1, 0, 0.5]] * 3 + [[0, 1, 0.5]])


def test_texts_without_a_turn_are_not_encoded() -> None:
    assert plan_prompt("[a:b:3]", "a1111", 4, True).texts == ("a",)
    assert plan_prompt("[a:b:0]", "a1111", 4, True).texts == ("b",)
    np.testing.assert_array_equal(plan_prompt("[a|b]", "a1111", 5, True).weights[:, 0], [1, 1, 0, 1, 0])


def test_a_negative_prompt_changes_but_is_not_composed() -> None:
    plan = plan_prompt("[a:b:1] AND c", "a1111", 3, False)
    assert plan.texts == ("a AND c", "b AND c")


def request(bundle, prompt, **settings):
    given = {"prompt_syntax": "a1111", "seed": 1, "steps": 4, "guidance": 5.0} | settings
    return make_request(prompt, given, bundle.manifest, lambda width, height: None)


def test_the_guidance_of_composed_prompts(bundle) -> None:
    """negative + sum g w (text - negative); outside the guidance interval at a scale of 1."""
    made = request(bundle, "a AND b :0.5", guidance_interval=(0.0, 0.5))
    rows = guidance_rows(made, compile_sampler("euler", EPSILON, 4), plan_request(made), 0)
    np.testing.assert_allclose(rows, [[1 - 7.5, 5, 2.5]] * 2 + [[-0.5, 1, 0.5]] * 2)


def test_the_guidance_of_a_prompt_that_changes(bundle) -> None:
    made = request(bundle, "[a:b:1]", negative="[c:d:2]")
    rows = guidance_rows(made, compile_sampler("heun", EPSILON, 4), plan_request(made), 0)
    before, middle, after = [-4, 0, 5, 0], [-4, 0, 0, 5], [0, -4, 0, 5]
    np.testing.assert_array_equal(rows, [before] * 4 + [middle] * 2 + [after])  # two evaluations per step


def test_a_late_start_goes_on_with_the_steps_of_the_schedule(bundle) -> None:
    made = request(bundle, "[a:b:2]")
    table = compile_sampler("euler", EPSILON, 4, 2)
    np.testing.assert_array_equal(guidance_rows(made, table, plan_request(made), 0), [[-4, 5, 0], [-4, 0, 5]])


def test_prompts_of_one_request_are_padded(bundle) -> None:
    made = request(bundle, ["a AND b", "c"])
    plan = plan_request(made)
    assert [one.texts for one in plan.prompts] == [("a", " b"), ("c", "c")]
    rows = guidance_rows(made, compile_sampler("euler", EPSILON, 4), plan, 1)
    np.testing.assert_array_equal(rows, [[-4, 5, 0]] * 4)


def test_the_default_syntax_says_once_what_it_draws_as_text(caplog) -> None:
    for prompt, found in (
        ("a (red) one told", "(red)"),
        ("a [red:blue:0.5] one", "[red:blue:0.5]"),
        ("one BREAK two", "BREAK"),
        ("one AND two", "AND"),
        ("a <lora:style:0.8> one", "<lora:style:0.8>"),
    ):
        caplog.clear()
        for _ in range(2):
            assert plan_prompt(prompt, "latentrt", 5, True).texts == (prompt,)
        assert [record.getMessage() for record in caplog.records] == [
            f"prompt: {found!r} is drawn as text; prompt_syntax='a1111' reads it as AUTOMATIC1111 does"
        ]
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        for prompt in ("a (red:1.3) one", r"\(red\)", "(12)", "bands and sand", "(style: anime)", "[1]"):
            plan_prompt(prompt, "latentrt", 5, True)
    assert not caplog.records


def rebuild(limits: Limits) -> str:
    return f"build-engine x --images {limits.images}"


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("a AND b", {"guidance": 1.0}, "prompt: AND, and a weight at the end of a prompt, need a guidance above 1"),
        ("a :2", {"guidance": 1.0}, "need a guidance above 1"),
        (
            "a AND b AND c AND d",
            {"images": 4},
            "make 20 rows of the U-Net at once; this build serves 8. Rebuild with: build-engine x --images 1:1:10",
        ),
        ("a", {"prompt_2": "b AND c"}, "prompt_2: AND, .* belong into the first encoder's text"),
        ("a", {"negative_2": "[b:c:1]"}, "negative_2: AND, .* belong into the first encoder's text"),
        ("a <lora:style:0.8>", {}, "prompt: '<lora:style:0.8>': LoRAs are no part of a prompt here"),
        ("[" * 201, {}, "prompt: 201 square brackets; at most 200 are read"),
    ],
)
def test_what_is_refused(bundle, prompt, settings, message) -> None:
    with pytest.raises(RequestError, match=message):
        check_plan(request(bundle, prompt, **settings), Limits.around(1024), rebuild)


def test_halves_need_no_guidance(bundle) -> None:
    check_plan(request(bundle, "a :0.5 AND b :0.5", guidance=1.0), Limits.around(1024), rebuild)


def test_an_unknown_syntax(bundle) -> None:
    with pytest.raises(RequestError, match="prompt_syntax 'comfyui': must be one of a1111, latentrt"):
        request(bundle, "a", prompt_syntax="comfyui")


def test_long_prompts_take_no_time() -> None:
    for syntax in ("latentrt", "a1111"):
        plan_prompt("(" * 3000 + "a " * 100_000, syntax, 5, True)
        plan_prompt("(a:" * 3000 + " : " * 3000, syntax, 5, True)
