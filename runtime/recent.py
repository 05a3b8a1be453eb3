"""A small least-recently-used cache."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The `limit` values used last, by key."""

    def __init__(self, limit: int):
        self._limit = limit
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made if missing; old values are dropped first, so that memory need not hold both."""
        found = self.find(key)
        if found is None:
            while len(self._values) >= self._limit:
                self._values.popitem(last=False)
            found = self._values[key] = make()
        return found

    def find(self, key: Key) -> Value | None:
        """The value of a key, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Drop every value."""
        self._values.clear()
