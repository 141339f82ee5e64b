"""What the testing kit watches: where clients send requests, and what their program receives.

A test can't see from outside whether a token has reached the program, so the clients report it here. Nothing
is watched unless the kit sets `watcher`, for the time of one test.
"""

from typing import Protocol


class Watcher(Protocol):
    """Watches all clients of the process; its methods are called in the threads of the clients."""

    def check_address(self, base_url: str) -> None:
        """Raise `ConfigurationError` if a client must not send requests to this base URL."""
        ...

    def add_received(self, result: object) -> None:
        """Note a response, an outcome or the result of a batch: the program has it, or the journal has."""
        ...


watcher: Watcher | None = None
