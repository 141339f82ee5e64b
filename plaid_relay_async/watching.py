"""A hook for the testing kit: the addresses that clients call, and the results that the program receives.

A test can't observe whether a token has reached the program, so the clients report it here. The kit sets
`watcher` while a test uses it; otherwise nothing is reported.
"""

from typing import Protocol


class Watcher(Protocol):
    """Watches all clients of the process; its methods are called in the threads of the clients."""

    def check_address(self, base_url: str) -> None:
        """Raise `ConfigurationError` if a client must not send requests to this base URL."""
        ...

    def add_received(self, result: object) -> None:
        """Note a response, an outcome or the result of a batch that the program or a journal has."""
        ...


watcher: Watcher | None = None
