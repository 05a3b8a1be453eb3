"""CLIP tokenizers for checkpoints that hold none: from a folder that the user names, or from an installed package."""

import gzip
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from latentrt.export.sources.source import Source
from latentrt.runtime.errors import BundleError, CheckpointError
from latentrt.runtime.text.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

PACKAGES = ("open_clip", "clip")
"""Python packages that bring CLIP's merges, as a file of the same name: OpenCLIP, and OpenAI's CLIP."""

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49408 - 2 * 256 - 2
"""CLIP takes so many of the file's merges: its vocabulary is two symbols per byte, the merges, begin and end."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary that all tokenizers of a checkpoint share; `origin` for messages."""

    origin: str
    files: dict[str, bytes]

    def tokenizer(self, pad: str) -> dict[str, bytes]:
        """The files of a tokenizer that fills up with this token; encoders differ in nothing else."""
        specials = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
        config = specials | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        return self.files | {"special_tokens_map.json": _json(specials), "tokenizer_config.json": _json(config)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def folder_tokenizer(folder: Path, name: str, pad: str) -> dict[str, bytes]:
    """One tokenizer's files from a checkpoint's folder (`folder/tokenizer_2`), or from a tokenizer's own.

    Raises:
        CheckpointError: neither holds a tokenizer.
    """
    own = folder / name
    if own.is_dir():
        return {file: (own / file).read_bytes() for file in TOKENIZER_FILES if (own / file).is_file()}
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        if all((folder / file).is_file() for file in names):
            files = {file: (folder / file).read_bytes() for file in names}
            return Vocabulary(str(folder), files).tokenizer(pad)
    raise CheckpointError(
        f"--tokenizer {folder}: holds no tokenizer. Name a folder with vocab.json and merges.txt or with "
        "tokenizer.json, or a checkpoint's folder in diffusers format"
    )


def installed_vocabulary(checkpoint: Path) -> Vocabulary:
    """CLIP's vocabulary out of an installed package, which is not imported.

    Raises:
        CheckpointError: none is installed.
    """
    for package in PACKAGES:
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            file = Path(location) / MERGES_FILE
            if file.is_file():
                return Vocabulary(f"the package {package}", vocabulary_files(file))
    raise CheckpointError(
        f"{checkpoint}: a single file holds no tokenizer, and no installed package brings CLIP's. Name one with "
        "--tokenizer FOLDER (a folder with vocab.json and merges.txt, such as the tokenizer folder of any Stable "
        "Diffusion checkpoint in diffusers format), or: pip install open_clip_torch"
    )


def vocabulary_files(file: Path) -> dict[str, bytes]:
    """vocab.json and merges.txt from CLIP's merges (Radford et al. 2021): byte symbols, these at word ends, merges."""
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [line for line in lines[1 : MERGES + 1] if line]
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate((*tokens, BEGIN, END))}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *merges, "")).encode(),
    }


def check_vocabulary(source: Source, tokenizer: str, known: int) -> None:
    """Raise `CheckpointError` where a tokenizer does not know exactly the tokens of its encoder."""
    with TemporaryDirectory() as folder:
        for name, content in source.tokenizer(tokenizer).items():
            (Path(folder) / name).write_bytes(content)
        try:
            found = Tokenizer.load(Path(folder)).backend.get_vocab_size()
        except BundleError as error:
            raise CheckpointError(f"{source.path}: {tokenizer}: {str(error).replace(folder, tokenizer)}") from error
    if found != known:
        raise CheckpointError(
            f"{source.path}: {tokenizer} has {found} tokens, but its text encoder knows {known}. "
            "Name the tokenizer of this model with --tokenizer FOLDER"
        )
