"""Chunks of the tokenizer, and what it says about files that are missing or broken."""

import json
import time

import numpy as np
import pytest
from checkpoints import EOS, VOCAB_SIZE, write_tokenizer

from latentrt.runtime.errors import BundleError, RequestError
from latentrt.runtime.text.tokenizer import Tokenizer

BEGIN, END = VOCAB_SIZE - 2, VOCAB_SIZE - 1


@pytest.fixture
def folder(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer", pad_token="!")


@pytest.fixture
def tokenizer(folder):
    return Tokenizer.load(folder)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("words", "chunks"), [(0, 1), (1, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3), (1000, 14)]
)
def test_chunks_hold_75_tokens_each(tokenizer, words, chunks):
    ids = tokenizer.encode("a " * words)
    assert len(ids) == words
    rows = tokenizer.chunks("a " * words)
    assert rows.shape == (chunks, 77)
    assert rows.dtype == np.int64
    for number, row in enumerate(rows):
        part = ids[75 * number : 75 * (number + 1)]
        assert row.tolist() == [BEGIN, *part, END] + [0] * (75 - len(part))


def test_padding_is_the_checkpoints_pad_token(tmp_path):
    first = Tokenizer.load(write_tokenizer(tmp_path / "a", pad_token=EOS))
    second = Tokenizer.load(write_tokenizer(tmp_path / "b", pad_token="!"))
    assert first.chunks("a cat")[0, -1] == END
    assert second.chunks("a cat")[0, -1] == 0


def test_empty_chunk_is_the_empty_text(tokenizer):
    assert tokenizer.empty_chunk().shape == (1, 77)
    np.testing.assert_array_equal(tokenizer.empty_chunk(), tokenizer.chunks(""))
    np.testing.assert_array_equal(tokenizer.empty_chunk(), tokenizer.chunks(" \n\t "))


def test_both_file_formats_give_the_same_ids(tmp_path):
    text = "It's a CAT! <|endoftext|> 猫 😀"
    loaded = [Tokenizer.load(write_tokenizer(tmp_path / form, tokenizer_format=form)) for form in ("files", "json")]
    np.testing.assert_array_equal(*(tokenizer.chunks(text) for tokenizer in loaded))


@pytest.mark.parametrize(
    "text", ["a photo of a cat " * 2000, "a" * 50_000, "!?" * 25_000], ids=["words", "word", "marks"]
)
def test_long_texts_are_quick(tokenizer, text):
    start = time.perf_counter()
    tokenizer.chunks(text)
    assert time.perf_counter() - start < 5


def test_crlf_merges(folder, tokenizer):
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(folder).encode("a red circle") == tokenizer.encode("a red circle")


def test_merges_are_applied(tokenizer):
    assert len(tokenizer.encode("background")) < len("background") // 2


def test_lone_surrogate(tokenizer):
    with pytest.raises(RequestError, match=r"^prompt holds U\+D83D at position 6: half of a surrogate pair"):
        tokenizer.encode("a cat \ud83d")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["vocab.json"], r"tokenizer: no vocab\.json; a tokenizer folder holds"),
        (["merges.txt"], r"tokenizer: no merges\.txt; a tokenizer folder holds"),
        (["vocab.json", "merges.txt"], r"no vocab\.json and no merges\.txt; .* Copy them from the checkpoint"),
    ],
)
def test_missing_files(folder, removed, message):
    for name in removed:
        (folder / name).unlink()
    with pytest.raises(BundleError, match=message):
        Tokenizer.load(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere: no vocab\.json and no merges\.txt"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b'{"a": 1', r"vocab\.json: not valid JSON \(.*\)\. Copy it again"),
        ("vocab.json", b"\xff\xfe", r"vocab\.json: cannot be read as UTF-8 text \(.*\)\. Copy it again"),
        ("vocab.json", b"[]", r"vocab\.json: must hold a JSON object, not a list"),
        ("vocab.json", b"{}", r"vocab\.json: the vocabulary must be an object"),
        ("vocab.json", b'{"a": "1"}', r"vocab\.json: the vocabulary must be an object"),
        ("vocab.json", b'{"a": 0}', r"bos_token '<\|startoftext\|>' is not in the vocabulary of 1 tokens"),
        ("merges.txt", b"#version: 0.2\na b\na b c\n", r"merges\.txt: merge 1 is 'a b c'; a merge is two tokens"),
        ("merges.txt", b"a\n", r"merges\.txt: merge 0 is 'a'; a merge is two tokens"),
        ("merges.txt", b"nosuch token</w>\n", r"vocabulary and merges do not fit together: .*nosuch"),
        ("special_tokens_map.json", b'{"pad_token": "<pad>"}', r"pad_token '<pad>' is not in the vocabulary of 768"),
        ("special_tokens_map.json", b'{"pad_token": 3}', r"a special token must be a text or an object with 'content'"),
        ("special_tokens_map.json", b'{"pad_token": {}, "eos_token": {"c": 1}}', r"special token must be a text"),
        ("special_tokens_map.json", b"{", r"special_tokens_map\.json: not valid JSON"),
        ("tokenizer_config.json", b"", r"tokenizer_config\.json: not valid JSON"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"5": {"content": "!"}}}',
            r"added token '!' should have id 5, but its vocabulary gives it 0",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "!"}}', r"added token id 'x' is not a number"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', r"added_tokens_decoder must be an object"),
    ],
)
def test_broken_files(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="Unigram"), r"tokenizer\.json: holds a model of type Unigram; CLIP's"),
        (lambda c: c.pop("model"), r"tokenizer\.json: holds a model of type None"),
        (lambda c: c["model"].pop("merges"), r"tokenizer\.json: holds a model of type BPE; .* BPE model with merges"),
        (lambda c: c["model"].update(merges=3), r"tokenizer\.json: the merges must be a list"),
        (lambda c: c["model"].update(merges=[["a"]]), r"tokenizer\.json: merge 0 is \['a'\]"),
        (lambda c: c["model"].update(merges=[["a", 1]]), r"tokenizer\.json: merge 0 is \['a', 1\]"),
        (lambda c: c["model"].update(vocab=[]), r"tokenizer\.json: the vocabulary must be an object"),
        (lambda c: c.update(added_tokens=[{"id": 0}]), r"a special token must be a text or an object with 'content'"),
        (lambda c: c.update(added_tokens=["x"]), r"tokenizer\.json: added_tokens must be a list of objects with 'id'"),
    ],
)
def test_broken_tokenizer_json(tmp_path, change, message):
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizer_format="json")
    edit(folder / "tokenizer.json", change)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BundleError, match=message):
        Tokenizer.load(folder)


def test_legacy_merges_in_tokenizer_json(tmp_path):
    """Merges as "left right", the way older versions of the library wrote them."""
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizer_format="json")
    before = Tokenizer.load(folder).encode("a red circle on a blue background")
    edit(folder / "tokenizer.json", lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]]))
    assert Tokenizer.load(folder).encode("a red circle on a blue background") == before


def test_added_tokens_that_are_not_numbers(folder):
    (folder / "added_tokens.json").write_text('{"<cat>": "768"}')
    with pytest.raises(BundleError, match=r"added_tokens\.json: must map each token to its number"):
        Tokenizer.load(folder)


def test_extra_tokens_that_are_none(folder):
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": 3}')
    with pytest.raises(BundleError, match=r"extra special tokens must be a list or an object of tokens, not 3"):
        Tokenizer.load(folder)
