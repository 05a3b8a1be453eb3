"""Whatever is given where something else belongs ends in an error of latentrt's own, and takes no time."""

import io
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from hollow_bundles import without_engines, write_hollow_bundle
from PIL import Image

from latentrt.runtime import Embeddings, Ensemble, MicroConditioning, generate_large
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import LatentRTError, RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.settings import SETTINGS


class Hostile:
    """Raises whatever it is asked."""

    def _refuse(self, *_: object) -> Never:
        raise RuntimeError("hostile")

    __iter__ = __len__ = __bool__ = __float__ = __int__ = __index__ = __repr__ = __str__ = __array__ = _refuse
    __eq__ = __lt__ = __le__ = __getitem__ = __call__ = _refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class HostileList(Sequence[Any]):
    """A list whose entries cannot be had."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        raise KeyError(index)


WRONG: dict[str, Any] = {
    "object": object(),
    "hostile": Hostile(),
    "hostile list": HostileList(),
    "function": len,
    "type": int,
    "bytes": b"\x01\x02",
    "bytearray": bytearray(b"ab"),
    "text": "nonsense",
    "empty text": "",
    "surrogate": "\ud800",
    "path": Path("nothing"),
    "dict": {"a": 1},
    "dict of numbers": {1: 2},
    "empty dict": {},
    "set": {1, 2},
    "empty list": [],
    "nested list": [[1, 2], [3, 4]],
    "ragged list": [[1], [1, 2]],
    "list of None": [None],
    "list of objects": [object(), object()],
    "endless": itertools.count(),
    "endless texts": itertools.repeat("a"),
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "negative": -7,
    "huge": 10**5000,
    "huge share": Fraction(10**400, 3),
    "complex": 1j,
    "decimal": Decimal("0.5"),
    "ellipsis": ...,
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "timedelta64": np.timedelta64(5, "s"),
    "datetime64": np.datetime64("2026-01-01"),
    "numpy text": np.array(["a", "b"]),
    "numpy bool": np.array([True]),
    "0-d object": np.array(object()),
    "0-d nan": np.array(np.nan),
    "objects": np.array([None, object()]),
    "ragged": np.array([[1], [1, 2]], dtype=object),
    "structured": np.zeros(2, dtype=[("a", "i4")]),
    "empty array": np.zeros((0, 3)),
    "4-d array": np.zeros((1, 2, 3, 4)),
    "complex array": np.zeros((8, 8, 3), complex),
    "longdouble": np.longdouble(10) ** 4000,
    "memory": memoryview(b"abcd"),
    "slice": slice(3),
    "stream": io.BytesIO(b"x"),
    "conditioning": MicroConditioning(),
    "no pixels": Image.new("RGB", (0, 0)),
    "not loaded": Image.Image(),
    "exception": ValueError("x"),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with without_engines(write_hollow_bundle(tmp_path_factory.mktemp("types") / "my-bundle")) as pipe:
        yield pipe


def only_our_errors(call: Any, *arguments: Any, **settings: Any) -> str:
    """The message of a call's error; empty if it was served."""
    try:
        call(*arguments, **settings)
    except LatentRTError as error:
        message = str(error)
    else:
        return ""
    assert len(message) < 2000
    return message


BESIDE: dict[str, dict[str, Any]] = {
    "mask": {"image": Image.new("RGB", (512, 512))},
    "paste_back": {"image": Image.new("RGB", (512, 512)), "mask": Image.new("L", (512, 512), 255)},
    "strength": {"image": Image.new("RGB", (512, 512))},
    "denoising_start": {"latents": np.zeros((1, 4, 64, 64))},
}
"""What some settings need."""

SERVED = {
    "negative": {"text", "empty text", "endless texts", "numpy text"},
    "schedule": {"empty dict"},
    "sampler": set[str](),
    "negative_conditioning": {"conditioning"},
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_at_every_setting(pipeline: Pipeline, wrong: Any) -> None:
    def request(name: str) -> None:
        request = pipeline.request("a cat", **{**BESIDE.get(name, {}), name: wrong})
        pipeline.check(request)

    messages = {name: only_our_errors(request, name) for name in SETTINGS}
    words = {name: message for name, message in messages.items() if message}
    assert len(words) >= len(SETTINGS) - 6, f"served: {sorted(messages.keys() - words.keys())}"


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_where_a_drawing_or_a_request_belongs(pipeline: Pipeline, wrong: Any) -> None:
    for call in (pipeline.run, pipeline.begin, pipeline.check, pipeline.advance, pipeline.finish):
        assert only_our_errors(call, wrong)
    request = pipeline.request("a cat")
    assert only_our_errors(pipeline.check, request, tokens=wrong)
    for call in (pipeline.generate, pipeline.embed, pipeline.request):
        only_our_errors(call, wrong, sampler="nonsense")
    if not callable(wrong):
        assert only_our_errors(pipeline.run, request, wrong)
        assert only_our_errors(generate_large, pipeline, "a cat", progress=wrong, scale=1.5)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_at_the_second_passes(pipeline: Pipeline, wrong: Any) -> None:
    both = Ensemble(pipeline, pipeline)
    assert only_our_errors(both.generate, "a cat", handover=wrong, steps=0)
    assert only_our_errors(both.generate, wrong, steps=0)
    assert only_our_errors(both.refine, "a cat", strength=wrong, steps=0)
    assert only_our_errors(Ensemble, wrong, pipeline)
    assert only_our_errors(Ensemble, pipeline, wrong)
    assert only_our_errors(generate_large, wrong, "a cat")
    for name in ("scale", "resample", "enlarge", "strength", "steps"):
        assert only_our_errors(generate_large, pipeline, "a cat", **{"scale": 1.5, "width": 2000, name: wrong})


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_where_a_bundle_is_loaded(pipeline: Pipeline, wrong: Any) -> None:
    assert only_our_errors(Pipeline.load, wrong)
    assert only_our_errors(Bundle.open, wrong)
    for name in ("backend", "device", "build", "lora_rank", "kept_steps"):
        assert only_our_errors(Pipeline.load, pipeline.bundle, **{name: wrong})


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_where_a_lora_is_loaded(pipeline: Pipeline, wrong: Any) -> None:
    for call in (pipeline.load_lora, pipeline.unload_lora, pipeline.peek):
        assert only_our_errors(call, wrong)
    for name in ("name", "evict"):
        assert only_our_errors(pipeline.load_lora, "nothing.safetensors", **{name: wrong})


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_in_embeddings_and_micro_conditioning(pipeline: Pipeline, wrong: Any) -> None:
    hidden, pooled = np.zeros((1, 77, 2048), np.float32), np.zeros((1, 1280), np.float32)
    assert only_our_errors(Embeddings, wrong)
    for name in ("hidden", "pooled", "negative_hidden", "negative_pooled"):
        whole = {"hidden": hidden, "pooled": pooled, "negative_hidden": hidden, "negative_pooled": pooled}
        assert only_our_errors(
            lambda given: pipeline.check(pipeline.request(Embeddings(**given))), whole | {name: wrong}
        )
    only_our_errors(MicroConditioning, aesthetic_score=wrong)
    for name in ("original", "crop", "target"):
        assert only_our_errors(MicroConditioning, **{name: wrong})


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_where_a_picture_is_saved(
    pipeline: Pipeline, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = pipeline.request("a cat")
    result = Result([Image.new("RGB", (8, 8))], np.zeros((1, 4, 1, 1), np.float32), {}, request)
    if not isinstance(wrong, io.BytesIO):
        assert only_our_errors(result.save, wrong)


def test_the_texts_that_name_what_is_wrong(pipeline: Pipeline) -> None:
    for call, words in (
        (lambda: pipeline.advance([]), "drawings: an empty list; give at least one drawing"),
        (lambda: pipeline.advance(None), "drawings: a NoneType; give a list of drawings, as `begin` returns them"),
        (lambda: pipeline.run("x"), "request: a str; make one with this pipeline's `request`"),
        (lambda: Pipeline.load(None), "bundle None: must be the path of a bundle's folder"),
        (lambda: Pipeline.load(pipeline.bundle, device=5), "device 5: must be text"),
        (lambda: pipeline.request({"a": 1}), "prompt {'a': 1}: must be text"),
        (lambda: pipeline.request("x", steps=Hostile()), "steps (a Hostile): must be a whole number"),
        (lambda: pipeline.check(pipeline.request("x"), 76), "tokens 76: must be a multiple of 77, or 0"),
        (
            lambda: Embeddings(np.zeros((0, 77, 160))),
            "embeddings: hidden has shape [0, 77, 160]; it must be (prompts, ",
        ),
    ):
        with pytest.raises(LatentRTError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert str(caught.value).startswith(words)


def test_arrays_without_axes_and_lists_are_read(pipeline: Pipeline) -> None:
    request = pipeline.request("a cat", seed=np.array(7), steps=np.array(4), negative=np.array("dull"))
    assert (request.seeds, request.steps, request.negatives) == ((7,), 4, ("dull",))
    assert type(request.negatives[0]) is str
    embedded = Embeddings(np.zeros((1, 77, 2048)).tolist(), np.zeros((1, 1280)).tolist())
    pipeline.check(pipeline.request(embedded, guidance=1))
    latents = np.zeros((1, 4, 64, 64)).tolist()
    assert pipeline.request("a cat", latents=latents).source.latents.dtype == np.float32  # type: ignore[union-attr]


def test_iterators_are_read_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is also what the metadata say."""
    monkeypatch.setattr(
        Pipeline, "run", lambda self, request, progress: Result([], np.zeros((1, 4, 1, 1), np.float32), {}, request)
    )
    texts = ("a cat", "a dog")
    result = pipeline.generate(iter(texts), negative=iter(["dull", "grey"]), guidance=iter([4, 5]))  # type: ignore[arg-type]
    assert result.metadata is not None
    assert result.metadata.prompt == texts
    assert result.metadata.settings["negative"] == ["dull", "grey"]
    with pytest.raises(RequestError, match="more than 1000000 values"):
        pipeline.request("a cat", seed=itertools.count())  # type: ignore[arg-type]
