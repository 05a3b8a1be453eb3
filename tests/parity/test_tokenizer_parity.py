"""The tokenizer against transformers' CLIPTokenizer: the same ids on awkward texts, from every form of the files."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from checkpoints import EOS, write_tokenizer
from transformers import CLIPTokenizer

from latentrt.runtime.text.tokenizer import Tokenizer

TEXTS = {
    "plain": "a red circle on a blue background, flat design",
    "empty": "",
    "blank": " \t\n\r\v\f  ",
    "whitespace runs": "  a   red\t\tcircle \n\n on\u00a0a\u2003blue\u3000background  ",
    "newlines": "first line\nsecond line\r\nthird\u2028fourth\u0085fifth",
    "upper case": "A RED Circle, ÀÉÎÖÜ İSTANBUL ẞ ΣΊΣΥΦΟΣ",
    "contractions": "it's a dog's life, they're I'm we've you'll he'd don't 'S 'RE ''s 'twas rock'n'roll",
    "curly apostrophes": "it\u2019s the dogs\u2019 life",
    "numbers": "1234567890 3.14 1,000 2nd ½ ² ٣ Ⅷ \U0001d7d8 1/2",
    "punctuation runs": "!!! ??? ... --- ,,, (((masterpiece:1.3))), [[x]] {a|b} a!b! !a !! ?! @#$%^&*_+=~`\\/",
    "accents": "café naïve Zürich Ångström façade",
    "combining": "cafe\u0301 n\u0303 a\u030a\u0323 \u0301alone e\u0301\u0301",
    "decomposed": unicodedata.normalize("NFD", "Ünïcödé façade 한국어"),
    "compatibility": "ﬁne \uff46\uff55\uff4c\uff4c ㎏ Å \u212b",
    "han, kana, hangul": "一只猫坐在窗边。カタカナ ひらがな 한국어 텍스트",
    "right to left": "مرحبا بالعالم שלום עולם",
    "indic and thai": "हिन्दी में कविता ภาษาไทย",
    "emoji": "a 😀 cat 🐈\u200d⬛ and 👨\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 ❤\ufe0f",
    "outside the BMP": "\U0001d518\U0001d52b\U0001d526\U0001d520\U0001d52c\U0001d521\U0001d522 𐍈 🜁 𠜎",
    "zero width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f \u200d \u00ad",
    "control characters": "a\x00b\x01c\x07d\x1be\x7ff\x9fg \x1c\x1d\x1e\x1f",
    "noncharacters": "\ufffd \uffff \U0010ffff \ue000",
    "end token inside": "a cat<|endoftext|>a dog <|endoftext|>",
    "begin token inside": "<|startoftext|>a cat<|startoftext|> <|startoftext|><|endoftext|>",
    "special tokens, other case": "a <|ENDOFTEXT|> b <|StartOfText|> c",
    "nearly special tokens": "<|endoftext| > <endoftext> <| endoftext |> |endoftext| <|end oftext|> </w> a</w>",
    "pad token inside": "hello! wow ! !!a!b! cat !",
    "markup": "<b>bold</b> &amp; &lt;tag&gt; http://example.com/a?b=c&d=e",
    "one long word": "supercalifragilistic" * 40,
    "75 tokens": "a " * 75,
    "76 tokens": "a " * 76,
    "300 words": "a photo of an astronaut riding a horse on the moon " * 28,
}


@pytest.fixture(scope="module", params=["files", "json"])
def file_format(request):
    return request.param


@pytest.fixture(scope="module", params=[EOS, "!"])
def pair(request, file_format, tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("t"), pad_token=request.param, tokenizer_format=file_format)
    return load_both(folder)


def load_both(folder: Path) -> tuple[Tokenizer, CLIPTokenizer]:
    return Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)


def assert_equal(ours: Tokenizer, theirs: CLIPTokenizer, text: str) -> None:
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == ids
    row = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
    rows = ours.chunks(text)
    assert rows[0].tolist() == row
    assert [index for one in rows for index in one[1:76]][: len(ids)] == ids


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_awkward_texts(pair, text):
    assert_equal(*pair, text)


def test_random_texts(pair):
    """Characters drawn from all of Unicode but the surrogates, mixed with words and special tokens."""
    rng = random.Random(0)
    pieces = ["a", "Cat", " ", "'s", "!", "<|endoftext|>", "<|startoftext|>", "</w>", "\n", "12"]
    for _ in range(300):
        ranges = rng.choices([range(0x300), range(0xD800), range(0xE000, 0x110000)], k=9)
        parts = [*(chr(rng.choice(codes)) for codes in ranges), *rng.choices(pieces, k=9)]
        rng.shuffle(parts)
        assert_equal(*pair, "".join(parts))


def test_special_ids(pair):
    ours, theirs = pair
    assert (ours.begin, ours.end, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


def test_backends_are_the_same(pair):
    """Added tokens with their ids and matching flags, normaliser, word pattern, vocabulary and merges."""
    ours, theirs = (json.loads(backend.to_str()) for backend in (pair[0].backend, pair[1].backend_tokenizer))
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "model"):
        assert ours[part] == theirs[part]


def edit_json(path: Path, **values) -> None:
    """Replace keys of a JSON file; None removes one."""
    content = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def strip(folder: Path) -> None:
    """No config at all: CLIP's defaults."""
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def plain_names(folder: Path) -> None:
    """Special tokens as plain texts."""
    values = {"bos_token": "<|startoftext|>", "eos_token": EOS, "unk_token": EOS, "pad_token": "!"}
    edit_json(folder / "special_tokens_map.json", **values)


def conflicting(folder: Path) -> None:
    """The two config files name different pad tokens."""
    edit_json(folder / "special_tokens_map.json", pad_token="!")
    edit_json(folder / "tokenizer_config.json", pad_token="?")


def config_alone(folder: Path) -> None:
    """tokenizer_config.json alone, with tokens as transformers 4 wrote them."""
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    edit_json(
        folder / "tokenizer_config.json",
        bos_token=token | {"content": "<|startoftext|>"},
        eos_token=token | {"content": EOS},
        unk_token=token | {"content": EOS},
        pad_token="!",
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def decoder(folder: Path) -> None:
    """added_tokens_decoder, with a token of its own beyond the vocabulary; special_tokens_map.json is then ignored."""
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {"0": "!", "766": "<|startoftext|>", "767": EOS, "768": "<my-style>"}
    edit_json(
        folder / "tokenizer_config.json",
        added_tokens_decoder={index: token | {"content": content} for index, content in tokens.items()},
        bos_token="<|startoftext|>",
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
    )
    edit_json(folder / "special_tokens_map.json", pad_token="!")


@pytest.mark.parametrize("edit", [strip, plain_names, conflicting, config_alone, decoder])
def test_config_files(tmp_path, file_format, edit):
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizer_format=file_format)
    edit(folder)
    ours, theirs = load_both(folder)
    assert ours.pad == theirs.pad_token_id
    for text in (*TEXTS.values(), "a <my-style> house, <MY-STYLE>", "what? is ? this"):
        assert_equal(ours, theirs, text)


def learned_word(folder: Path) -> None:
    """added_tokens.json, as transformers wrote learned words before 4.34."""
    edit_json(folder / "added_tokens.json", **{"<my-style>": 768, EOS: 767, "<Cat-Toy>": 769})


def learned_words_that_are_special(folder: Path) -> None:
    """added_tokens.json with a token that the config calls special, and another that only the config names."""
    edit_json(folder / "added_tokens.json", **{"<my-style>": 768, "<cat-toy>": 769})
    edit_json(folder / "tokenizer_config.json", additional_special_tokens=["<cat-toy>", "<new>"])


def extra_list(folder: Path) -> None:
    """Special tokens of transformers 5, which are in no vocabulary."""
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=["<my-style>", "<cat-toy>"])


def ignored_beside_a_decoder(folder: Path) -> None:
    """added_tokens_decoder replaces added_tokens.json."""
    decoder(folder)
    edit_json(folder / "added_tokens.json", **{"<cat-toy>": 769})


@pytest.mark.parametrize("edit", [learned_word, learned_words_that_are_special, extra_list, ignored_beside_a_decoder])
def test_learned_words(tmp_path, file_format, edit):
    """In every file that holds them: the same ids as transformers', in and out of their own case."""
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizer_format=file_format)
    edit(folder)
    ours, theirs = load_both(folder)
    for text in (*TEXTS.values(), "a <my-style> house, <MY-STYLE>", "the <cat-toy><Cat-Toy> <new> a<new>b"):
        assert_equal(ours, theirs, text)
    assert ours.encode("<my-style>") == [768]
    assert (ours.begin, ours.end, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


@pytest.mark.parametrize("again", ["files", "json"])
def test_learned_words_saved_again(tmp_path, again):
    """A folder that transformers saves after a word was added to it."""
    theirs = CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path / "plain", tokenizer_format=again))
    theirs.add_tokens("<my-style>")
    theirs.save_pretrained(tmp_path / "saved")
    ours = Tokenizer.load(tmp_path / "saved")
    assert ours.encode("a <my-style> cat") == theirs("a <my-style> cat", add_special_tokens=False).input_ids
    assert 768 in ours.encode("a <my-style> cat")
