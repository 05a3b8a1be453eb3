"""CLIP tokenizers for checkpoints that hold none: from a folder that the user names, or from an installed package."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from latentrt.export.sources.source import Source
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.errors import BundleError, CheckpointError
from latentrt.runtime.text.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
ADDED_FIELDS = ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens")
"""Fields of tokenizer_config.json with tokens beyond the vocabulary."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

PACKAGES = ("open_clip", "clip")
"""Python packages that contain CLIP's merges, both in `MERGES_FILE`: OpenCLIP, and OpenAI's CLIP."""

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49408 - 2 * 256 - 2
"""How many of the file's merges CLIP uses: its vocabulary is two symbols per byte, the merges, begin and end."""


@dataclass(frozen=True)
class Vocabulary:
    """Files of the vocabulary that all tokenizers of a checkpoint share: name -> content.

    `added`: the fields of their tokenizer_config.json that add tokens to it.
    """

    files: dict[str, bytes]
    added: Mapping[str, Any] = field(default_factory=dict)

    def tokenizer(self, pad: str) -> dict[str, bytes]:
        """Make the files of a tokenizer that pads with the token `pad`; encoders differ in nothing else."""
        specials = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
        config = {**self.added, **specials} | {
            "model_max_length": TOKENS_PER_CHUNK,
            "tokenizer_class": "CLIPTokenizer",
            "do_lower_case": True,
        }
        return self.files | {"special_tokens_map.json": _json(specials), "tokenizer_config.json": _json(config)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read those of `TOKENIZER_FILES` that a folder holds: name -> content."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def folder_tokenizer(folder: Path, name: str, pad: str) -> dict[str, bytes]:
    """Read one tokenizer's files from a checkpoint's folder (`folder/tokenizer_2`), or from a tokenizer's own folder.

    Raises:
        CheckpointError: the folder is neither.
    """
    if (folder / name).is_dir():
        return read_tokenizer_files(folder / name)
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        if all((folder / file).is_file() for file in names):
            files = read_tokenizer_files(folder)
            try:
                config = json.loads(files.get("tokenizer_config.json", b"{}"))
            except ValueError as error:
                raise CheckpointError(f"{folder / 'tokenizer_config.json'}: not valid JSON ({error})") from error
            added = {name: config[name] for name in ADDED_FIELDS if config.get(name)}
            return Vocabulary(files, added).tokenizer(pad)
    raise CheckpointError(
        f"--tokenizer {folder}: holds no tokenizer. Name a folder with vocab.json and merges.txt or with "
        "tokenizer.json, or a checkpoint's folder in diffusers format"
    )


def installed_vocabulary(checkpoint: Path) -> Vocabulary:
    """Read CLIP's vocabulary from an installed package, without importing it.

    Raises:
        CheckpointError: no such package is installed.
    """
    for package in PACKAGES:
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            file = Path(location) / MERGES_FILE
            if file.is_file():
                return Vocabulary(vocabulary_files(file))
    raise CheckpointError(
        f"{checkpoint}: a single file holds no tokenizer, and no installed package brings CLIP's. Name one with "
        "--tokenizer FOLDER (a folder with vocab.json and merges.txt, such as the tokenizer folder of any Stable "
        "Diffusion checkpoint in diffusers format), or: pip install open_clip_torch"
    )


def vocabulary_files(file: Path) -> dict[str, bytes]:
    """Make vocab.json and merges.txt from CLIP's file of merges (Radford et al. 2021, arXiv:2103.00020).

    The ids count the byte symbols, the same at the end of a word, the merges, begin and end.
    """
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [line for line in lines[1 : MERGES + 1] if line]
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate((*tokens, BEGIN, END))}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *merges, "")).encode(),
    }


def check_vocabulary(source: Source, tokenizer: str, known: int, *, exactly: bool = True) -> None:
    """Raise `CheckpointError` if a tokenizer is not the one of a text encoder that knows `known` tokens.

    `exactly`: it must have as many, which tells CLIP's apart; else none of its ids may be beyond the encoder's.
    """
    with TemporaryDirectory() as folder:
        for name, content in source.tokenizer(tokenizer).items():
            (Path(folder) / name).write_bytes(content)
        try:
            backend = Tokenizer.load(Path(folder)).backend
        except BundleError as error:
            raise CheckpointError(f"{source.path}: {tokenizer}: {str(error).replace(folder, tokenizer)}") from error
    if exactly and (tokens := backend.get_vocab_size()) != known:
        raise CheckpointError(
            f"{source.path}: {tokenizer} has {tokens} tokens, but its text encoder knows {known}. "
            "Name the tokenizer of this model with --tokenizer FOLDER"
        )
    word, largest = max(backend.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if largest >= known:
        raise CheckpointError(
            f"{source.path}: {tokenizer} gives {word!r} the id {largest}, but its text encoder knows {known} tokens. "
            "Take both from one checkpoint"
        )
