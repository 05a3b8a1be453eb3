"""A pipeline in use: threads share it, its own work cannot call it, drawings change hands, and closed is closed."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import StandInBackend, StandInCuda

from latentrt.runtime import Drawing, Ensemble, Pipeline, RequestError, generate_large
from latentrt.runtime.drawing.turns import Turns

PROMPT = "a red circle"
STEPS = 6
SETTINGS: dict[str, Any] = {"steps": STEPS, "seed": 3, "guidance": 3, "width": 64, "height": 64}
AT_WORK = "this pipeline is at work, and was called from inside that work, such as from `progress`. Call it when"
CLOSED = "this pipeline is closed. Load its bundle again, with Pipeline.load"


@pytest.fixture(scope="module")
def pipe(sdxl_pipeline: Pipeline) -> Pipeline:
    return sdxl_pipeline


@pytest.fixture
def second(sdxl_bundle: Path) -> Iterator[Pipeline]:
    """Another pipeline of the same bundle."""
    with Pipeline.load(sdxl_bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def wanted(pipe: Pipeline) -> np.ndarray:
    """The latents of the request, drawn undisturbed."""
    return pipe.generate(PROMPT, **SETTINGS).latents


def begun(pipe: Pipeline, steps: int = 0, **more: Any) -> Drawing:
    """A drawing of the request, `steps` steps on its way."""
    drawing = pipe.begin(pipe.request(PROMPT, **(SETTINGS | more)))
    if steps:
        pipe.advance([drawing], steps)
    return drawing


def finished(pipe: Pipeline, drawing: Drawing) -> np.ndarray:
    """The latents of a drawing after the steps that are left."""
    if drawing.steps_left:
        pipe.advance([drawing], drawing.steps_left)
    return pipe.finish(drawing).latents


def every_method(pipe: Pipeline, drawing: Drawing) -> dict[str, Callable[[], object]]:
    """A call of each public method that works, or makes what another works on."""
    request = drawing.request
    return {
        "generate": lambda: pipe.generate(PROMPT, **SETTINGS),
        "request": lambda: pipe.request(PROMPT, **SETTINGS),
        "check": lambda: pipe.check(request),
        "run": lambda: pipe.run(request),
        "begin": lambda: pipe.begin(request),
        "embed": lambda: pipe.embed("a star"),
        "advance": lambda: pipe.advance([drawing]),
        "peek": lambda: pipe.peek(drawing),
        "finish": lambda: pipe.finish(drawing),
        "forget_prompts": pipe.forget_prompts,
        "enter": pipe.__enter__,
        "generate_large": lambda: generate_large(pipe, PROMPT, **SETTINGS),
        "ensemble": lambda: Ensemble(pipe, pipe).generate(PROMPT),
    }


# Threads


def test_threads_are_served_one_after_the_other(pipe: Pipeline) -> None:
    jobs = [SETTINGS | {"prompt": f"{PROMPT}, number {seed}", "seed": seed} for seed in range(6)]
    alone = [pipe.generate(**job).latents for job in jobs]
    pipe.forget_prompts()
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda job: pipe.generate(**job).latents, jobs * 3))
    for found, right in zip(drawn, alone * 3, strict=True):
        np.testing.assert_array_equal(found, right)


def test_threads_leave_the_right_prompts_behind(pipe: Pipeline) -> None:
    texts = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "star", "square")]
    right = [pipe.embed(text).hidden for text in texts]
    pipe.forget_prompts()
    with ThreadPoolExecutor(4) as threads:
        embedded = list(threads.map(lambda text: pipe.embed(text).hidden, texts))
    np.testing.assert_array_equal(embedded, right)
    np.testing.assert_array_equal([pipe.embed(text).hidden for text in texts], right)


def test_threads_advance_and_finish_drawings_of_their_own(pipe: Pipeline, wanted: np.ndarray) -> None:
    def stepwise(_: int) -> np.ndarray:
        drawing = begun(pipe)
        while drawing.steps_left:
            pipe.advance([drawing])
        return pipe.finish(drawing).latents

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(stepwise, range(8)):
            np.testing.assert_array_equal(found, wanted)


def test_who_waits_is_not_overtaken_by_who_just_had_a_turn() -> None:
    turns, order = Turns(), []
    started, waiting = threading.Event(), threading.Event()

    def busy() -> None:
        for number in range(50):
            turns.take(started.set)
            if number == 0:
                waiting.wait()
            turns.take(order.append, "busy")

    def once() -> None:
        turns.take(order.append, "once")

    def hold_until_once_waits() -> None:
        waiter.start()
        while not turns._line.locked():
            pass
        waiting.set()

    worker, waiter = threading.Thread(target=busy), threading.Thread(target=once)
    worker.start()
    started.wait()
    turns.take(hold_until_once_waits)
    worker.join()
    waiter.join()
    assert order.index("once") <= 1


# Calls from inside


def test_a_call_from_inside_is_refused_and_the_outer_picture_is_right(pipe: Pipeline, wanted: np.ndarray) -> None:
    other = begun(pipe)
    calls = every_method(pipe, other) | {"close": pipe.close, "pickle": lambda: pickle.dumps(outer)}
    refused: dict[str, str] = {}

    def progress(done: int, steps: int) -> None:
        if done == 2:
            for name, call in calls.items():
                with pytest.raises(RequestError, match=AT_WORK) as error:
                    call()
                refused[name] = str(error.value)

    outer = begun(pipe)
    pipe.advance([outer], STEPS, progress)
    np.testing.assert_array_equal(pipe.finish(outer).latents, wanted)
    assert refused.keys() == calls.keys()
    np.testing.assert_array_equal(finished(pipe, other), wanted)
    del calls["pickle"]
    np.testing.assert_array_equal(pipe.generate(PROMPT, progress=progress, **SETTINGS).latents, wanted)


def test_a_refusal_that_stops_the_outer_call_leaves_all_usable(pipe: Pipeline, wanted: np.ndarray) -> None:
    drawing = begun(pipe, 1)
    with pytest.raises(RequestError, match=AT_WORK):
        pipe.advance([drawing], 3, lambda done, steps: pipe.forget_prompts())
    np.testing.assert_array_equal(finished(pipe, drawing), wanted)


def test_progress_may_call_another_pipeline_but_not_take_what_is_being_drawn(
    pipe: Pipeline, second: Pipeline, wanted: np.ndarray
) -> None:
    outer, previews = begun(pipe), []

    def progress(done: int, steps: int) -> None:
        previews.append(second.generate(PROMPT, **SETTINGS).latents)
        with pytest.raises(RequestError, match=AT_WORK):
            second.advance([outer])

    pipe.advance([outer], STEPS, progress)
    for latents in (pipe.finish(outer).latents, *previews):
        np.testing.assert_array_equal(latents, wanted)


def test_what_calls_a_pipeline_several_times_is_not_a_call_from_inside(pipe: Pipeline) -> None:
    with ThreadPoolExecutor(3) as threads:
        large = threads.submit(generate_large, pipe, PROMPT, scale=1.25, **SETTINGS)
        both = threads.submit(Ensemble(pipe, pipe).generate, PROMPT, **SETTINGS)
        assert large.result().images[0].size == (80, 80)
        assert both.result().images[0].size == (64, 64)


# Drawings that change hands


def test_a_drawing_moves_to_another_pipeline_as_it_is(pipe: Pipeline, second: Pipeline, wanted: np.ndarray) -> None:
    drawing = begun(pipe, 2)
    second.advance([drawing], 2)
    pipe.advance([drawing], 2)
    np.testing.assert_array_equal(second.finish(drawing).latents, wanted)


def test_pictures_beside_the_one_that_moves_keep_their_state(
    pipe: Pipeline, second: Pipeline, wanted: np.ndarray
) -> None:
    goes, stays = begun(pipe), begun(pipe)
    pipe.advance([goes, stays], 2)
    moved = finished(second, goes)
    np.testing.assert_allclose(moved, wanted, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(finished(pipe, stays), moved, atol=1e-5 * np.abs(wanted).max())


def test_a_drawing_of_another_model_is_refused(pipe: Pipeline, wanted: np.ndarray) -> None:
    drawing = begun(pipe, STEPS)
    foreign = replace(drawing, model=drawing.model.model_copy(update={"family": "sd1"}))
    for call in (lambda: pipe.advance([foreign]), lambda: pipe.finish(foreign)):
        with pytest.raises(RequestError, match=r"this drawing is of another model than .*Go on with a pipeline of"):
            call()
    np.testing.assert_array_equal(pipe.finish(drawing).latents, wanted)


def test_two_pipelines_never_draw_one_drawing_at_once(pipe: Pipeline, second: Pipeline, wanted: np.ndarray) -> None:
    drawing, taken = begun(pipe), begun(pipe)

    def progress(done: int, steps: int) -> None:  # past the place where a drawing is asked back
        if done != 2:
            return
        with pytest.raises(RequestError, match=r"being advanced by another pipeline. Use a drawing in one pipeline at"):
            second._work.loop.advance(drawing.pictures)
        with pytest.raises(RequestError, match=r"or copy it first: copy.copy\(drawing\)"):
            second._work.finish(replace(drawing, pictures=[replace(drawing.pictures[0], step=STEPS)]))

    pipe.advance([drawing], STEPS, progress)
    np.testing.assert_array_equal(pipe.finish(drawing).latents, wanted)
    with ThreadPoolExecutor(2) as threads:  # one after the other, in either order
        for done in [threads.submit(one.advance, [taken], 3) for one in (pipe, second)]:
            done.result()
    np.testing.assert_array_equal(pipe.finish(taken).latents, wanted)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda drawing: pickle.loads(pickle.dumps(drawing))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_carries_the_current_state(
    pipe: Pipeline, second: Pipeline, wanted: np.ndarray, copied: Callable[[Drawing], Drawing]
) -> None:
    drawing = begun(pipe, 2)
    twin = copied(drawing)
    assert (twin.steps_left, twin.request.seeds) == (STEPS - 2, (3,))
    pipe.advance([drawing], 2)
    np.testing.assert_array_equal(finished(second, twin), wanted)
    np.testing.assert_array_equal(finished(pipe, drawing), wanted)
    picture = copied(begun(pipe, 2).pictures[0])  # type: ignore[type-var]
    assert picture.holder is None
    second.advance([replace(twin, pictures=[picture])], STEPS - 2)
    np.testing.assert_array_equal(finished(second, replace(twin, pictures=[picture])), wanted)


def test_a_copy_keeps_its_seconds_without_the_marks_of_a_gpu(
    sdxl_bundle: Path, gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentrt.runtime.build_selection.open_backend", lambda name, device: StandInBackend())
    with Pipeline.load(sdxl_bundle, "onnxruntime", "cpu") as pipe:
        twin = pickle.loads(pickle.dumps(begun(pipe, 2)))
        assert twin.timeline.seconds() == {"text": 1.5, "denoise": 3.0}


# Interruptions


@pytest.mark.parametrize("place", ["lay_out", "hold"])
def test_an_interruption_while_pictures_are_taken_leaves_them_free(
    pipe: Pipeline, second: Pipeline, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    drawing = begun(pipe, 2)
    begun(pipe, 1)  # now the first one must be taken anew

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"latentrt.runtime.drawing.loop.{place}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipe.advance([drawing], 2)
    assert drawing.pictures[0].holder is None
    np.testing.assert_array_equal(finished(second, drawing), wanted)


def test_an_interruption_while_waiting_costs_no_turn() -> None:
    turns = Turns()
    with pytest.raises(KeyboardInterrupt):
        turns.take(_interrupt)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(turns.take, str, 5).result(timeout=10) == "5"
    assert turns.take(str, 6) == "6"


def _interrupt() -> None:
    raise KeyboardInterrupt


# After the end


def test_a_closed_pipeline_says_so(sdxl_bundle: Path) -> None:
    pipe = Pipeline.load(sdxl_bundle, "onnxruntime", "cpu")
    drawing = begun(pipe)
    pipe.close()
    pipe.close()
    for call in every_method(pipe, drawing).values():
        with pytest.raises(RequestError, match=CLOSED):
            call()
    assert pipe.note
    assert "build-engine" in pipe.rebuild_command(pipe.limits)


def test_a_drawing_outlives_the_pipeline_that_holds_it(sdxl_bundle: Path, pipe: Pipeline, wanted: np.ndarray) -> None:
    with Pipeline.load(sdxl_bundle, "onnxruntime", "cpu") as first:
        drawing = begun(first, 2)
    np.testing.assert_array_equal(finished(pipe, pickle.loads(pickle.dumps(drawing))), wanted)
    np.testing.assert_array_equal(finished(pipe, drawing), wanted)


def test_closing_waits_for_the_picture_of_another_thread(sdxl_bundle: Path, wanted: np.ndarray) -> None:
    pipe, drawing = Pipeline.load(sdxl_bundle, "onnxruntime", "cpu"), threading.Event()
    with ThreadPoolExecutor(3) as threads:
        picture = threads.submit(pipe.generate, PROMPT, progress=lambda done, steps: drawing.set(), **SETTINGS)
        drawing.wait()
        closings = [threads.submit(pipe.close) for _ in range(2)]
        np.testing.assert_array_equal(picture.result().latents, wanted)
        for closing in closings:
            closing.result()
    with pytest.raises(RequestError, match=CLOSED):
        pipe.generate(PROMPT)
