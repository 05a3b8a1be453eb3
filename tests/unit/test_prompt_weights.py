"""Weights inside prompts, as text: what belongs to a weight, what is part of the prompt, and what is refused."""

import re

import numpy as np
import pytest

from latentrt.demo import CHECKPOINT
from latentrt.runtime.errors import RequestError
from latentrt.runtime.text.encoder import token_rows
from latentrt.runtime.text.prompt_weights import parse_weights
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
    ("prompt", "message"),
    [
        ("(red:much)", "prompt '(red:much)': 'much' is not a weight; write a number from 0 to 10, as in (word:1.3)"),
        ("(red:)", "prompt '(red:)': '' is not a weight"),
        ("(red:-1)", "'-1' is not a weight"),
        ("(red:11)", "'11' is not a weight"),
        ("(red:1e1)", "'1e1' is not a weight"),
        ("(red:1.2.3)", "'1.2.3' is not a weight"),
        ("(red:nan)", "'nan' is not a weight"),
        ("a (red:1.3", "prompt 'a (red:1.3': the weight at its end has no closing parenthesis; add )"),
        (
            "a very long prompt that goes on and on, with a (word:heavy) in it",
            "prompt 'a very long prompt that goes on and on, …': 'heavy' is not a weight",
        ),
    ],
)
def test_weights_that_do_not_parse(prompt: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        parse_weights(prompt)


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
