"""The loop on a tiny checkpoint: recorded steps, batches of pictures at different steps, and nothing that grows."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import StandInBackend, StandInCuda
from json_files import edit_json

from latentrt.runtime import NumericsError, Pipeline, RequestError
from latentrt.runtime.drawing.loop import KEPT_STEPS
from latentrt.runtime.text.encoder import KEPT_TEXTS

SIZE = 64
SAMPLERS = ("euler", "euler_a", "dpmpp_2m", "unipc", "ddim", "lcm")


@pytest.fixture(scope="module")
def bundle(sdxl_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, serving eight images: its ONNX files serve any number."""
    folder = shutil.copytree(sdxl_bundle, tmp_path_factory.mktemp("eight") / "bundle")
    edit_json(folder / "manifest.json", lambda manifest: manifest["limits"].update(images="1:1:8"))
    return folder


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline


def settings(number: int) -> dict[str, Any]:
    """Requests that have nothing in common but their size."""
    return {
        "prompt": f"a red circle, number {number}",
        "negative": None if number % 2 else "blurry",
        "seed": number,
        "steps": 3 + number,
        "guidance": 0.5 + number,
        "sampler": SAMPLERS[number % len(SAMPLERS)],
        "width": SIZE,
        "height": SIZE,
    }


def test_eight_pictures_at_eight_steps_are_as_if_drawn_alone(pipe: Pipeline) -> None:
    waiting = [settings(number) for number in range(8)]
    alone = [pipe.generate(**one) for one in waiting]
    drawings = []
    for one in waiting:  # one more joins at every step
        drawings.append(pipe.begin(pipe.request(**one)))
        pipe.advance([drawing for drawing in drawings if drawing.steps_left])
    while running := [drawing for drawing in drawings if drawing.steps_left]:
        pipe.advance(running, min(drawing.steps_left for drawing in running))
    for drawing, wanted in zip(drawings, alone, strict=True):
        found = pipe.finish(drawing)
        np.testing.assert_allclose(found.latents, wanted.latents, atol=1e-5 * np.abs(wanted.latents).max())
        assert found.request == wanted.request


def test_prompts_of_other_lengths_join_where_they_are_encoded_as_long(pipe: Pipeline) -> None:
    size = {"width": SIZE, "height": SIZE, "steps": 2, "seed": 1}
    long = pipe.begin(pipe.request("green star, left " * 10, **size))
    short = pipe.begin(pipe.request("a red circle", **size))
    with pytest.raises(RequestError, match=r"these have 154 and 77 tokens. Begin the shorter one with tokens=154"):
        pipe.advance([long, short])
    joined = pipe.begin(pipe.request("a red circle", **size), tokens=154)
    pipe.advance([long, joined], 2)
    assert np.isfinite(pipe.finish(joined).latents).all()
    with pytest.raises(RequestError, match=r"needs 4 chunks of 75 tokens, this build serves up to 3"):
        pipe.begin(pipe.request("a red circle", **size), tokens=308)


def test_what_cannot_be_advanced_says_why(pipe: Pipeline) -> None:
    def begin(**more: Any) -> Any:
        return pipe.begin(pipe.request("a red circle", **({"width": SIZE, "height": SIZE, "steps": 3} | more)))

    one, other = begin(), begin(width=SIZE + 8)
    with pytest.raises(RequestError, match=r"one batch has one size; its latents would be \(8, 8\) and \(8, 9\)"):
        pipe.advance([one, other])
    with pytest.raises(RequestError, match="advance by 4 steps: the picture that is furthest has 3 left"):
        pipe.advance([one], 4)
    with pytest.raises(RequestError, match="drawings: one of them is there twice; give each only once"):
        pipe.advance([one, one])
    with pytest.raises(RequestError, match="images 9: this build serves 1 to 8"):
        pipe.advance([begin(images=8), one])
    with pytest.raises(RequestError, match="this drawing has 3 steps left; advance it before it is finished"):
        pipe.finish(one)
    with pytest.raises(RequestError, match=r"^drawings: an empty list; give at least one drawing"):
        pipe.advance([])
    for steps in (0, -1, 1.5):
        with pytest.raises(RequestError, match=rf"^steps {steps}: must be a whole number of at least 1$"):
            pipe.advance([one], steps)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^progress 3: must be a function of \(steps done, steps in all\)$"):
        pipe.advance([one], 1, 3)  # type: ignore[arg-type]
    pipe.advance([one], 3)  # none of it has harmed the drawing
    assert np.isfinite(pipe.finish(one).latents).all()


def test_progress_may_stop_a_drawing_which_can_go_on(pipe: Pipeline) -> None:
    request = pipe.request("a red circle", seed=3, steps=4, width=SIZE, height=SIZE)
    wanted = pipe.run(request)
    drawing = pipe.begin(request)
    pipe.advance([drawing], 1)

    def stop(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.advance([drawing], 3, stop)
    assert drawing.steps_left == 4  # what was on the device is gone
    seen: list[tuple[int, int]] = []
    pipe.advance([drawing], 4, lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(pipe.finish(drawing).latents, wanted.latents)


def test_a_failed_picture_does_not_stop_the_ones_after_it(pipe: Pipeline) -> None:
    request = pipe.request("a red circle", seed=3, steps=2, width=SIZE, height=SIZE)
    wanted = pipe.run(request)
    drawing = pipe.begin(request)
    drawing.pictures[0].state[0, 0, 0, 0] = np.nan
    pipe.advance([drawing], 2)
    with pytest.raises(NumericsError, match="picture 1 holds NaN or infinity from step 1 of 2 on"):
        pipe.finish(drawing)
    np.testing.assert_array_equal(pipe.run(request).latents, wanted.latents)


def test_requests_of_one_size_share_one_recorded_step(bundle: Path) -> None:
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        for steps, sampler in ((2, "euler"), (5, "dpmpp_2m"), (9, "lcm")):
            pipe.generate("a red circle", steps=steps, sampler=sampler, guidance=3, width=SIZE, height=SIZE)
        lengths = {"noises": 1, "steps": 32, "history": 2}
        kept = [dict(sizes) for sizes in pipe._work.loop._kept._values]
        assert [{name: sizes[name] for name in lengths} for sizes in kept] == [lengths, lengths | {"noises": 32}]
        for width in range(SIZE, SIZE + 8 * (KEPT_STEPS + 2), 8):
            pipe.generate("a red circle", steps=1, width=width, height=SIZE)
        assert len(pipe._work.loop._kept) == KEPT_STEPS


def test_a_prompt_is_encoded_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        encoded: list[tuple[str, list[str]]] = []
        run = pipe._work.prompts._run

        def watched(encoder: Any, texts: Any, chunks: int) -> Any:
            encoded.append((encoder.component, [text.text for text in texts]))
            return run(encoder, texts, chunks)

        monkeypatch.setattr(pipe._work.prompts, "_run", watched)
        request = {"steps": 1, "guidance": 3, "seed": 1, "width": SIZE, "height": SIZE}
        first = pipe.generate(["a red circle", "a star"], negative="blurry", **request)
        again = pipe.generate(["a red circle", "a star"], negative="blurry", **request)
        np.testing.assert_array_equal(first.latents, again.latents)
        pipe.generate(["a star", "a cat"], negative="blurry", **request)
        calls = [["a red circle", "a star", "blurry"], ["a cat"]]
        assert encoded == [(name, texts) for texts in calls for name in ("text_encoder", "text_encoder_2")]
        for number in range(KEPT_TEXTS):
            pipe.begin(pipe.request(f"number {number}", **(request | {"guidance": 1})))
        assert len(pipe._work.prompts._encoded) == KEPT_TEXTS


def test_captured_steps_draw_the_same_pictures(
    bundle: Path, pipe: Pipeline, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device buffers, captured steps, page-locked copies: on a stand-in whose memory is the host's."""
    monkeypatch.setattr("latentrt.runtime.build_selection.open_backend", lambda name, device: StandInBackend())
    wanted = [pipe.generate(**settings(number)) for number in range(3)]
    with Pipeline.load(bundle, "onnxruntime", "cpu") as captured:
        for number, one in enumerate(wanted):
            gpu.calls.clear()
            found = captured.generate(**settings(number))
            assert (captured.is_captured, pipe.is_captured) == (True, None)
            np.testing.assert_array_equal(found.latents, one.latents)
            np.testing.assert_array_equal(np.asarray(found.images[0]), np.asarray(one.images[0]))
            launches = [name for name, *_ in gpu.calls].count("cudaGraphLaunch")
            # A session's first step runs as it is; so does a decoder's first run.
            assert launches >= found.request.steps - 1
            # The device's clock, on which every span takes 1.5 s here: noise, steps and the states' way back are three.
            assert found.timings == {"text": 1.5, "denoise": 4.5, "decode": 1.5}
        drawing = captured.begin(captured.request(**settings(2)))
        captured.advance([drawing], 2)
        gpu.calls.clear()
        captured.advance([drawing], 3)
        event = ["cudaEventCreate", "cudaEventRecord"]
        assert [name for name, *_ in gpu.calls] == ["cudaSetDevice", *event, *["cudaGraphLaunch"] * 3, *event]
        del drawing, found
    assert not gpu.memory
    assert not gpu.graphs


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("cycles", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_loading_and_unloading_does_not_grow(bundle: Path, cycles: int) -> None:
    sizes = []
    for number in range(cycles):
        with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
            pipe.generate("a red circle", steps=1, seed=number, width=SIZE, height=SIZE)
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[cycles // 2] < 10e6, sizes


@pytest.mark.parametrize("requests", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_requests_do_not_grow(bundle: Path, requests: int) -> None:
    sizes = []
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        for number in range(requests):
            pipe.generate(f"circle {number}", steps=1, width=SIZE + 8 * (number % 7), height=SIZE)
            sizes.append(resident_bytes())
    assert sizes[-1] - sizes[requests // 2] < 10e6, sizes
