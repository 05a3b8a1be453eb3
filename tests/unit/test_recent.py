"""The cache of what was used last."""

from latentrt.runtime.recent import Recent


def test_what_was_unused_for_longest_goes_first() -> None:
    made: list[str] = []
    recent: Recent[str, str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: (made.append(key), key.upper())[1])

    assert [get(key) for key in "abab"] == list("ABAB")
    assert made == ["a", "b"]
    assert recent.find("a") == "A"  # counts as a use
    get("c")
    assert recent.find("b") is None
    assert len(recent) == 2
    get("a")
    assert made == ["a", "b", "c"]
    recent.clear()
    assert len(recent) == 0


def test_room_is_made_before_the_new_value_is() -> None:
    recent: Recent[int, int] = Recent(1)
    kept: list[int] = []
    recent.get(1, lambda: 1)
    recent.get(2, lambda: kept.append(len(recent)) or 2)
    assert kept == [0]


def test_a_value_that_cannot_be_made_leaves_no_trace() -> None:
    recent: Recent[int, int] = Recent(1)
    try:
        recent.get(1, lambda: 1 // 0)
    except ZeroDivisionError:
        assert recent.find(1) is None
    assert recent.get(1, lambda: 5) == 5
