"""The agenda: what happens later by the simulator's time, such as the end of a report's generation."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from attrs import define

Action: TypeAlias = Callable[[], None]


@define(eq=False)
class Entry:
    """An action in the agenda; None if it was cancelled."""

    action: Action | None


class Agenda:
    """Actions, each at a moment of the simulator's time. Those of one moment run in the order of `add`.

    Attributes:
        on_add: called after an action was added.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._numbers = count()
        self._cancelled = 0
        self.on_add: Action = _do_nothing

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, moment: float, action: Action) -> Entry:
        """Add an action."""
        entry = Entry(action)
        heapq.heappush(self._heap, (moment, next(self._numbers), entry))
        self.on_add()
        return entry

    def cancel(self, entry: Entry) -> None:
        """Remove an action that has not run yet."""
        entry.action = None
        self._cancelled += 1
        # As in asyncio, entries are removed when they are many, because each removal reads the whole heap.
        if self._cancelled > len(self._heap) / 2:
            self._heap = [item for item in self._heap if item[2].action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_moment(self) -> float | None:
        """Return the moment of the first action, or None if there is none."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def run_next(self, now: float) -> bool:
        """Run the first action that is due; return whether there was one."""
        moment = self.next_moment()
        if moment is None or moment > now:
            return False
        action = heapq.heappop(self._heap)[2].action
        assert action is not None  # noqa: S101  next_moment has removed the others
        action()
        return True


def _do_nothing() -> None:
    pass
