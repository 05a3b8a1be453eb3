"""The engine of a server, without HTTP: what is drawn together equals what is drawn alone, and nobody is forgotten."""

import numpy as np
import pytest
from PIL import Image

from latentrt.runtime import BackendError, NumericsError, Pipeline
from latentrt.serve.engine import BatchEngine
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import Accepted, Cancelled, Failed, Finished, Preview, Started, Stepped, Submit
from latentrt.serve.previews import PreviewMap, _read, preview_map

SETTINGS = {"steps": 6, "seed": 3, "guidance": 4.0, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe(demo_bundle):
    with Pipeline.load(demo_bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline


class Desk:
    """Takes what the engine sends."""

    def __init__(self, pipe, limits=None, most=4, previews=None):
        self.sent = []
        self.now = 0.0
        self.engine = BatchEngine(
            {"demo": pipe}, limits or ServerLimits(), most, self.sent.append, previews, self.clock
        )

    def clock(self):
        """A millisecond passes whenever somebody looks."""
        self.now += 0.001
        return self.now

    def submit(self, id, prompt="a red circle", model="demo", seconds=None, previews=0, **settings):
        self.engine.submit(Submit(id, model, (prompt,), SETTINGS | settings, seconds, previews))

    def of(self, kind, id=None):
        return [message for message in self.sent if isinstance(message, kind) and (id is None or message.id == id)]

    def failure(self, id):
        (found,) = self.of(Failed, id)
        return found

    def picture(self, id):
        (found,) = self.of(Finished, id)
        return np.asarray(found.pictures[0]).astype(int)

    def draw(self, steps=1000):
        for _ in range(steps):
            if self.engine.is_idle:
                return
            self.engine.work()
            self.now += 0.01


def alone(pipe, prompt="a red circle", **settings):
    return np.asarray(pipe.generate(prompt, **(SETTINGS | settings)).images[0]).astype(int)


def difference(one, other):
    return int(np.abs(one - other).max())


def test_a_request_from_its_start_to_its_picture(pipe):
    desk = Desk(pipe)
    desk.submit("a")
    desk.draw()
    kinds = [type(message) for message in desk.sent]
    assert kinds == [Accepted, Started, *[Stepped] * 6, Finished]
    assert desk.sent[0] == Accepted("a", 6, 1, 64, 64, (3,))
    assert [message.done for message in desk.of(Stepped)] == [{"a": step} for step in range(1, 7)]
    done = desk.sent[-1]
    assert (done.latents, done.metadata.prompt_text, set(done.seconds)) == (
        None,
        "a red circle",
        {"text", "denoise", "decode"},
    )
    assert difference(desk.picture("a"), alone(pipe)) == 0
    assert desk.engine.is_idle


def test_requests_that_join_and_leave_look_as_if_drawn_alone(pipe):
    desk = Desk(pipe)
    desk.submit("first")
    desk.draw(2)
    desk.submit("second", "a green star", seed=8, steps=9, sampler="dpmpp_2m", guidance=7.0)
    desk.draw(2)
    desk.submit("third", "a blue square", seed=9, steps=3, sampler="euler_a", guidance=1.0)
    desk.draw()
    assert max(message.pictures for message in desk.of(Stepped)) == 3
    assert difference(desk.picture("first"), alone(pipe)) <= 1
    assert (
        difference(
            desk.picture("second"), alone(pipe, "a green star", seed=8, steps=9, sampler="dpmpp_2m", guidance=7.0)
        )
        <= 1
    )
    assert (
        difference(
            desk.picture("third"), alone(pipe, "a blue square", seed=9, steps=3, sampler="euler_a", guidance=1.0)
        )
        <= 1
    )
    joins, leaves = (sum(getattr(message, name) for message in desk.of(Stepped)) for name in ("joined", "left"))
    assert (joins, leaves) == (3, 2)


def test_a_pause_costs_nothing(pipe):
    """A short request overtakes a long one in a batch of one; the long one goes on where it was."""
    desk = Desk(pipe, most=1)
    desk.submit("long", steps=40)
    for _ in range(5):
        desk.engine.work()
    desk.submit("short", "a green star", steps=2)
    desk.draw()
    assert [message.id for message in desk.of(Finished)] == ["short", "long"]
    assert difference(desk.picture("long"), alone(pipe, steps=40)) <= 1


def test_two_sizes_and_two_lengths_have_lanes_of_their_own(pipe):
    desk = Desk(pipe)
    desk.submit("small")
    desk.submit("large", width=96)
    desk.submit("wordy", " ".join(["a red circle"] * 40))
    desk.draw()
    assert {message.lane for message in desk.of(Stepped)} == {"demo 64x64 77", "demo 96x64 77", "demo 64x64 154"}
    assert len(desk.of(Finished)) == 3
    assert difference(desk.picture("large"), alone(pipe, width=96)) == 0


def test_a_cancelled_request_leaves_and_the_others_go_on(pipe):
    desk = Desk(pipe)
    desk.submit("a")
    desk.submit("b", seed=4)
    desk.draw(2)
    desk.engine.cancel("a")
    desk.engine.cancel("nobody")
    desk.draw()
    assert desk.of(Cancelled) == [Cancelled("a")]
    assert [message.id for message in desk.of(Finished)] == ["b"]
    assert difference(desk.picture("b"), alone(pipe, seed=4)) <= 1


def test_a_deadline_ends_a_request(pipe):
    desk = Desk(pipe)
    desk.submit("late", seconds=0.025)
    desk.submit("other", seed=4)
    desk.draw()
    assert (desk.failure("late").kind, desk.failure("late").message) == (
        "deadline",
        "not drawn in time: the 0.025 s that it was given are over",
    )
    assert len(desk.of(Finished, "other")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 65}, "width 65: must be a multiple of 8"),
        ({"width": 4096, "height": 4096}, "16777216 pixels; this server draws up to 16384"),
        ({"step": 3}, "step: no such setting, the nearest is steps"),
        ({"steps": 60}, "steps 60: 60 evaluations of the U-Net; this server allows 50"),
        ({"steps": 40, "sampler": "heun"}, "steps 40: 79 evaluations"),
        ({"images": 5}, "images 5: this server draws up to 4"),
        ({"images": 3}, "a batch has up to 2 here"),
        ({"model": "else"}, "model 'else': not served here; this server has demo"),
        (
            {"image": Image.new("RGB", (136, 136)), "width": None, "height": None},
            "18496 pixels; this server draws up to",
        ),
    ],
)
def test_what_is_not_served_is_answered(pipe, settings, message):
    desk = Desk(pipe, ServerLimits(pixels=128 * 128, steps=50, pictures=4), most=2)
    desk.submit("a", **settings)
    assert desk.failure("a").kind == "request"
    assert message in desk.failure("a").message
    assert desk.engine.is_idle


def test_values_that_overflow_do_not_take_others_along(pipe):
    """NaN in one picture spreads over its batch; who was in it is drawn again alone, and only then given up."""
    desk = Desk(pipe)
    desk.submit("bad")
    desk.submit("good", seed=4)
    for _ in range(3):
        desk.engine.work()
    pipe._work.loop._give_back()
    desk.engine._works["bad"].drawing.pictures[0].state[:] = np.nan
    desk.draw()
    assert {message.lane for message in desk.of(Stepped)} == {"demo 64x64 77"}
    assert difference(desk.picture("bad"), alone(pipe)) == 0
    assert difference(desk.picture("good"), alone(pipe, seed=4)) == 0


def test_values_that_overflow_alone_are_an_error(pipe, monkeypatch):
    desk = Desk(pipe)
    desk.submit("bad")
    desk.submit("good", seed=4)
    finish, calls = pipe.finish, []

    def failing(drawing):
        calls.append(drawing.request.seeds)
        if drawing.request.seeds == (3,):
            raise NumericsError("it holds NaN")
        return finish(drawing)

    monkeypatch.setattr(pipe, "finish", failing)
    desk.draw()
    assert desk.failure("bad") == Failed("bad", "numerics", "it holds NaN")
    assert calls == [(3,), (4,), (3,)]
    assert len(desk.of(Finished, "good")) == 1


def test_a_batch_that_cannot_be_is_drawn_one_by_one(pipe, monkeypatch):
    """Where a batch fails, each request takes the step alone, and only those fail that fail alone."""
    desk = Desk(pipe)
    desk.submit("bad")
    desk.submit("good", seed=4)
    advance = pipe.advance

    def failing(drawings, *rest):
        if any(drawing.request.seeds == (3,) for drawing in drawings):
            raise NumericsError("it fails")
        advance(drawings, *rest)

    monkeypatch.setattr(pipe, "advance", failing)
    desk.draw()
    assert desk.failure("bad") == Failed("bad", "numerics", "it fails")
    assert len(desk.of(Finished, "good")) == 1


def test_what_nobody_expected_is_the_answer_to_one_request(pipe, monkeypatch, caplog):
    desk = Desk(pipe)
    check, begin = pipe.check, pipe.begin

    def failing(work, seed):
        def call(request, *rest):
            if request.seeds == (seed,):
                raise ZeroDivisionError("oh")
            return work(request, *rest)

        return call

    monkeypatch.setattr(pipe, "check", failing(check, 1))
    monkeypatch.setattr(pipe, "begin", failing(begin, 2))
    for seed in range(3):
        desk.submit(f"{seed}", seed=seed)
    desk.draw()
    wanted = "internal error (ZeroDivisionError); the server's log has more"
    for id in ("1", "2"):
        assert desk.failure(id) == Failed(id, "worker", wanted)
    assert len(desk.of(Finished, "0")) == 1
    assert "ZeroDivisionError: oh" in caplog.text


def test_the_front_knows_under_whom_a_process_ended(pipe, monkeypatch):
    desk = Desk(pipe)
    desk.submit("a")

    def failing(*_):
        raise BackendError("the device is lost")

    monkeypatch.setattr(pipe, "begin", failing)
    with pytest.raises(BackendError):
        desk.draw()
    assert len(desk.of(Started, "a")) == 1


def test_a_device_that_fails_ends_the_process(pipe, monkeypatch):
    desk = Desk(pipe)
    desk.submit("a")

    def failing(*_):
        raise BackendError("the device is lost")

    monkeypatch.setattr(pipe, "advance", failing)
    with pytest.raises(BackendError):
        desk.draw()


def test_latents_alone(pipe):
    desk = Desk(pipe)
    desk.submit("a", decode=False)
    desk.draw()
    (done,) = desk.of(Finished)
    assert (done.pictures, done.latents.shape) == ((), (1, 4, 8, 8))


def test_a_batch_of_several_pictures(pipe):
    desk = Desk(pipe)
    desk.submit("a", images=3)
    desk.submit("b", images=2)
    desk.draw()
    assert {message.id: len(message.pictures) for message in desk.of(Finished)} == {"a": 3, "b": 2}
    assert max(message.pictures for message in desk.of(Stepped)) == 3


@pytest.fixture(scope="module")
def fitted(pipe):
    return preview_map(pipe)


def test_previews_come_when_they_should_and_resemble_the_picture(pipe, fitted):
    desk = Desk(pipe, previews={"demo": fitted})
    desk.submit("a", previews=3, steps=20, width=96, height=96)
    desk.submit("b", seed=4, width=96, height=96)
    desk.draw()
    previews = desk.of(Preview)
    assert [(preview.id, preview.step) for preview in previews] == [("a", 5), ("a", 10), ("a", 15)]
    picture = desk.of(Finished, "a")[0].pictures[0]
    small = np.asarray(picture.resize((12, 12), Image.Resampling.BOX)).astype(float)
    errors = [np.abs(np.asarray(preview.pictures[0]) - small).mean() for preview in previews]
    assert previews[0].pictures[0].size == (12, 12)
    assert errors[-1] < 0.6 * np.abs(small - 127).mean()


def test_a_preview_is_sent_though_another_picture_is_done_with_the_same_step(pipe, fitted):
    desk = Desk(pipe, previews={"demo": fitted})
    desk.submit("done", steps=3)
    desk.submit("seen", seed=4, steps=6, previews=1)
    desk.draw()
    assert [(preview.id, preview.step) for preview in desk.of(Preview)] == [("seen", 3)]
    assert difference(desk.picture("seen"), alone(pipe, seed=4)) <= 1


def test_looking_at_a_drawing_does_not_change_it(pipe, fitted):
    desk = Desk(pipe, previews={"demo": fitted})
    desk.submit("a", previews=5)
    desk.draw()
    assert difference(desk.picture("a"), alone(pipe)) == 0


def test_previews_of_finished_latents_are_near_the_decoders_pictures(pipe, fitted):
    """The demo's small VAE is far from linear; the map explains most of what differs from the mean colour."""
    prompts = ["a yellow star", "a red circle", "a blue square on a white background", "a green triangle"]
    results = [pipe.generate(prompt, steps=12, seed=11) for prompt in prompts]
    latents, pictures = [result.latents[0] for result in results], [result.images[0] for result in results]
    small = np.stack([np.asarray(picture.resize((12, 12), Image.Resampling.BOX)).astype(float) for picture in pictures])
    assert fitted.degree == 3
    assert fitted.error(latents, pictures) < 0.6 * np.abs(small - small.mean(axis=(0, 1, 2))).mean()
    assert fitted.error(latents, pictures) < PreviewMap.fit(latents, pictures).error(latents, pictures) * 1.5


def test_the_map_is_kept(pipe, fitted, monkeypatch):
    monkeypatch.setattr(pipe, "generate", None)
    kept = preview_map(pipe)
    for name in ("weights", "low", "high"):
        assert np.array_equal(getattr(kept, name), getattr(fitted, name))


def test_least_squares_finds_a_linear_map():
    draw = np.random.default_rng(0)
    weights = np.array([[40, 0, 5], [0, 30, 0], [8, 0, 20], [-5, 5, 5], [120, 130, 140]], np.float32)
    latents = list(draw.standard_normal((9, 4, 9, 7)).astype(np.float32))
    bounds = np.full(4, 9, np.float32)
    drawn = PreviewMap(1, weights, -bounds, bounds).pictures(np.stack(latents))
    fitted = PreviewMap.best(latents, [one.resize((56, 72), Image.Resampling.NEAREST) for one in drawn])
    assert fitted.degree == 1
    assert np.abs(fitted.weights - weights).max() < 2


@pytest.mark.parametrize(
    "text", ["", "[]", '{"degree": 1}', '{"degree": 2, "weights": [[1, 2, 3]], "low": [0], "high": [1]}']
)
def test_a_damaged_map_is_fitted_anew(text, tmp_path):
    (tmp_path / "map.json").write_text(text)
    assert _read(tmp_path / "map.json") is None


def test_prompts_of_several_texts_take_more_places(pipe):
    """Three rows of the U-Net for one picture take two places, so that the batch holds what the build serves."""
    desk = Desk(pipe)
    text = "a red circle AND a blue square"
    for seed in range(3):
        desk.submit(f"{seed}", text, prompt_syntax="a1111", seed=seed)
    desk.draw()
    assert max(message.pictures for message in desk.of(Stepped)) == 2
    for seed in range(3):
        assert difference(desk.picture(f"{seed}"), alone(pipe, text, prompt_syntax="a1111", seed=seed)) <= 1


def test_so_many_captured_steps_stay(demo_bundle):
    with Pipeline.load(demo_bundle, "onnxruntime", "cpu", kept_steps=2) as few:
        for width in (48, 56, 64):
            few.generate("a red circle", **(SETTINGS | {"width": width, "steps": 1}))
        assert len(few._work.loop._kept) == 2
