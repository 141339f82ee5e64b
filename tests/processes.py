"""Processes that start with signals ignored, and a bounded wait for what they do."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    """Let processes that are started meanwhile begin with these signals ignored, and with no other of them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A new program inherits what is ignored; what has a handler is reset to its default.
        signal.signal(number, signal.SIG_IGN if number in numbers else signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(ready: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)
