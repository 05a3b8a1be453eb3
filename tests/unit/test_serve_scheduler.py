"""The scheduler alone: whose turn it is, who shares a batch, and that nobody starves. Time is a number here."""

import itertools
import statistics

import pytest

from latentrt.benchmarks.serving_simulation import arrivals, simulate
from latentrt.serve.scheduler import FIRST_GUESS, PATIENCE, Job, Lane, Scheduler

SMALL, LARGE = Lane("m", 64, 64, 77), Lane("m", 128, 128, 77)
LONG_PROMPT, OTHER = Lane("m", 64, 64, 154), Lane("other", 64, 64, 77)
numbers = itertools.count()


def job(lane=SMALL, steps=10, came=0.0, pictures=1, deadline=None, id=None):
    return Job(id or f"job-{next(numbers)}", lane, pictures, steps, came, deadline)


def scheduler(*jobs, most=4):
    made = Scheduler({"m": most, "other": most})
    for one in jobs:
        made.add(one)
    return made


def taken(turn):
    return [one.id for one in turn.jobs]


def step(made, seconds=0.1):
    """Take one step, and let those go that are done."""
    turn = made.next_turn()
    made.stepped(turn, seconds)
    for one in turn.jobs:
        one.steps_left -= 1
        if not one.steps_left:
            made.remove(one.id)
    return turn


def test_nothing_to_do():
    made = scheduler()
    assert (made.next_turn(), len(made), made.lanes, made.waiting) == (None, 0, 0, 0)
    assert made.remove("nobody") is None


@pytest.mark.parametrize("other", [LARGE, LONG_PROMPT, OTHER])
def test_a_batch_has_one_model_size_and_length(other):
    made = scheduler(job(id="a"), job(other, id="b", came=1.0), job(id="c", came=2.0))
    turn = made.next_turn()
    assert (turn.lane, taken(turn)) == (SMALL, ["a", "c"])
    assert made.lanes == 2


def test_a_newcomer_joins_at_the_next_step():
    made = scheduler(job(id="a", steps=3))
    assert taken(step(made)) == ["a"]
    made.add(job(id="b", steps=3, came=0.1))
    assert [taken(step(made)) for _ in range(3)] == [["a", "b"], ["a", "b"], ["b"]]


def test_a_batch_holds_so_many_pictures():
    made = scheduler(job(id="a", pictures=2), job(id="b", pictures=3, came=0.1), job(id="c", pictures=2, came=0.2))
    turn = made.next_turn()
    assert (taken(turn), turn.pictures) == (["a", "c"], 4)


def test_a_request_too_large_for_the_room_that_is_left_gets_its_turn():
    made = scheduler(job(id="small", steps=5), job(id="wide", steps=5, pictures=4, came=0.1))
    assert [taken(step(made)) for _ in range(6)] == [["small"]] * 5 + [["wide"]]


def test_short_requests_overtake_long_ones_in_a_full_batch():
    made = scheduler(*(job(steps=50, id=f"long-{n}") for n in range(2)), most=2)
    step(made)
    made.add(job(steps=4, came=0.1, id="short"))
    assert taken(made.next_turn()) == ["short", "long-0"]
    for _ in range(4):
        step(made)
    assert taken(made.next_turn()) == ["long-0", "long-1"]


def test_a_deadline_goes_ahead():
    made = scheduler(job(steps=10, id="first"), job(LARGE, steps=10, came=0.01, deadline=0.02, id="urgent"))
    assert taken(made.next_turn()) == ["urgent"]


def test_a_deadline_far_away_changes_nothing():
    far = job(came=0.0, deadline=1e6)
    due, _, _ = scheduler(far).order(far)
    assert due == pytest.approx(PATIENCE * 10 * 64 * 64 * FIRST_GUESS)


def test_expired():
    made = scheduler(job(id="a", deadline=5.0), job(id="b"))
    assert made.expired(4.9) == []
    assert [one.id for one in made.expired(5.0)] == ["a"]


def test_a_cancelled_request_is_not_in_the_next_batch():
    made = scheduler(job(id="a"), job(id="b"))
    step(made)
    assert made.remove("a").id == "a"
    assert taken(made.next_turn()) == ["b"]


def test_waiting_are_those_not_begun():
    first, second = job(), job()
    made = scheduler(first, second)
    first.begun = True
    assert made.waiting == 1


def test_it_learns_how_long_a_step_takes():
    made = scheduler(job(id="a"))
    for _ in range(100):
        made.stepped(made.next_turn(), 0.5)
    assert made.seconds_alone(job(steps=10)) == pytest.approx(5.0)
    assert made.seconds_alone(job(LARGE, steps=10)) == pytest.approx(20.0)
    assert made.seconds_alone(job(steps=10, pictures=3)) == pytest.approx(15.0)
    assert made.seconds_alone(job(OTHER, steps=10)) == pytest.approx(10 * 64 * 64 * FIRST_GUESS)


def test_nobody_starves_under_an_endless_stream_of_short_requests():
    """More short requests come than the device can draw; the long one of the other lane is drawn all the same."""
    made, now = scheduler(job(LARGE, steps=50, id="long")), 0.0
    for number in range(5000):
        if number % 3 == 0:
            made.add(job(SMALL, steps=4, came=now, id=f"short-{number}", pictures=4))
        turn = step(made, 0.4 if made.next_turn().lane == LARGE else 0.1 * made.next_turn().pictures)
        now += 0.1 * turn.pictures if turn.lane == SMALL else 0.4
        if not any(one.lane == LARGE for one in made._jobs.values()):
            break
    assert "long" not in made._jobs
    assert now < 3 * PATIENCE * 50 * 0.4


def test_short_requests_wait_much_less_than_first_come_first_served():
    """At 80 % load, half of 4 and half of 50 steps, even where a batch saves nothing: only the order differs."""

    def medians(most, patience):
        taken = simulate(arrivals(1000, 0.8, seed=1), most, patience, gain=0.0)
        return {steps: statistics.median(values) for steps, values in taken.items()}

    first_come, one, four = medians(1, 0.0), medians(1, PATIENCE), medians(4, PATIENCE)
    for served in (one, four):
        assert served[4] * 5 < first_come[4]
        assert served[50] < 1.1 * first_come[50]
