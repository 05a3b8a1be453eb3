"""Weights inside prompts, as text: what belongs to a weight, and what is part of the prompt."""

import numpy as np
import pytest

from latentrt.demo import CHECKPOINT
from latentrt.runtime.text.prompt_weights import parse_weights
from latentrt.runtime.text.token_rows import token_rows
from latentrt.runtime.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", []),
        ("a red circle", [("a red circle", 1)]),
        ("a (red:1.3) circle", [("a ", 1), ("red", 1.3), (" circle", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red circle: 0.5 )", [("red circle", 0.5)]),
        ("(red:.5)(blue:2)", [("red", 0.5), ("blue", 2)]),
        ("(red:0)", [("red", 0)]),
        ("(red:10)", [("red", 10)]),
        # a weight of 1 leaves no seam
        ("a (red:1) circle", [("a red circle", 1)]),
        ("a (red:1.0)dish circle", [("a reddish circle", 1)]),
        # one inside another: both count
        ("(a (red:2) circle:1.5)", [("a ", 1.5), ("red", 3), (" circle", 1.5)]),
        ("((red:2):2)", [("red", 4)]),
        ("(a (small) circle:2)", [("a (small) circle", 2)]),
        # parentheses that are part of the text
        ("a (red) circle", [("a (red) circle", 1)]),
        ("a ((red)) circle", [("a ((red)) circle", 1)]),
        ("a) (red", [("a) (red", 1)]),
        ("(a circle", [("(a circle", 1)]),
        ("a circle)", [("a circle)", 1)]),
        ("ratio 3:2, (wide)", [("ratio 3:2, (wide)", 1)]),
        ("at 10:30)", [("at 10:30)", 1)]),
        ("(a (b:2)", [("(a ", 1), ("b", 2)]),
        # escaped ones never begin or end a weight
        (r"a \(red:1.3\) circle", [("a (red:1.3) circle", 1)]),
        (r"(red \(dark\):1.3)", [("red (dark)", 1.3)]),
        (r"\((red:1.3)\)", [("(", 1), ("red", 1.3), (")", 1)]),
        (r"a back\slash", [(r"a back\slash", 1)]),
        ("(红色:1.2)", [("红色", 1.2)]),
    ],
)
def test_parse_weights(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert [(one.text, pytest.approx(one.weight)) for one in parse_weights(prompt)] == fragments


@pytest.mark.parametrize(
    "prompt",
    [
        *("a girl (style: anime)", "a clock (12:30)", "a clock (10:05)", "(16:9)", "(at 7:10)", "(happy :) face)"),
        *(
            "(:) and (:",
            "a cat (:3)",
            "( :2)",
            "(a:1.)",
            "(red:)",
            "(red: much)",
            "(a:1.2.3)",
            "(red:nan)",
            "(red:inf)",
            "(red:1e1)",
            "(a:1,2)",
        ),
        *("(red:-1)", "(red:11)", "a (red:1.3", "(https://example.org)", "(D:", "((a: b): c)", "(a:1:2)"),
    ],
)
def test_whatever_is_no_weight_is_text(prompt: str) -> None:
    assert [(one.text, one.weight) for one in parse_weights(prompt)] == [(prompt, 1)]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("(style: anime:1.2)", [("style: anime", 1.2)]),
        ("(a (b: c) d:1.2)", [("a (b: c) d", 1.2)]),
        ("(at 12:30, a clock:1.5)", [("at 12:30, a clock", 1.5)]),
        ("(1990s:2)", [("1990s", 2)]),
        ("(photo 2:1.3)", [("photo 2", 1.3)]),
        ("(12:30) and (red:2)", [("(12:30) and ", 1), ("red", 2)]),
    ],
)
def test_weights_beside_such_text(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert [(one.text, one.weight) for one in parse_weights(prompt)] == fragments


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("(red:11), (blue:1.3)", "(red:11)"),
        ("a (dog:-1)", "(dog:-1)"),
        ("a (cat:1.", "(cat:1."),
        ("a (cat:1.)", "(cat:1.)"),
        ("a (cat:1.3", "(cat:1.3"),
        ("(12:30) (style: anime) (happy :)", ""),
    ],
)
def test_what_may_have_been_meant_as_a_weight_is_told_once(
    prompt: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        parse_weights(f"told: {prompt}")
    told = [record.getMessage() for record in caplog.records]
    wanted = f"prompt: {found!r} is text. A weight is a number from 0 to 10, as in (word:1.3)"
    assert told == ([wanted] if found else [])


def test_long_prompts_take_no_time() -> None:
    parse_weights("(" * 3000 + "a " * 100_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(CHECKPOINT / "tokenizer")


@pytest.mark.parametrize("prompt", ["", "a red circle", "a (red) circle", "ratio 3:2", "star, " * 60, "(a circle"])
def test_prompts_without_weights_are_tokenised_as_before(tokenizer: Tokenizer, prompt: str) -> None:
    rows, weights = token_rows(tokenizer, prompt)
    np.testing.assert_array_equal(rows, tokenizer.chunks(prompt))
    np.testing.assert_array_equal(weights, np.ones_like(rows))


@pytest.mark.parametrize("before", [0, 1, 74, 75, 149, 150])
def test_every_token_of_a_weighted_word_has_its_weight(tokenizer: Tokenizer, before: int) -> None:
    """Whatever chunk it falls into; begin and end tokens have none."""
    ids = len(tokenizer.encode("star"))
    filler = "star " * (before // ids)
    rows, weights = token_rows(tokenizer, f"{filler}(red circle:1.5) star")
    np.testing.assert_array_equal(rows, tokenizer.chunks(f"{filler}red circle star"))
    first, count = (before // ids) * ids, len(tokenizer.encode("red circle"))
    flat = weights[:, 1:-1].ravel()
    assert np.flatnonzero(flat != 1).tolist() == list(range(first, first + count))
    assert set(flat.tolist()) == {1.0, 1.5}
    assert (weights[:, [0, -1]] == 1).all()
