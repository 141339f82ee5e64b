"""What the clients of a test do: the addresses that they call, and the relay tokens that they return.

The simulator's ledger has all tokens that were issued. The difference is what the program has lost.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from plaid_relay_async import BatchResult, ConfigurationError, Created, RelayCreateResponse
from plaid_relay_async.hosts import is_loopback


class ClientWatcher:
    """The `watching.Watcher` of one test. It watches all clients of the process, also older ones."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        # A result grows after the program has received it.
        self._results: list[BatchResult[Any, Any]] = []

    def check_address(self, base_url: str) -> None:
        """Raise `ConfigurationError` if the URL isn't one of this machine."""
        if not is_loopback(urlsplit(base_url).hostname or ""):
            raise ConfigurationError(
                f"a test that uses a simulator must not call {base_url}: create the client in the test or in "
                "one of its fixtures, where PLAID_BASE_URL is the simulator's address, and not at import"
            )

    def add_received(self, result: object) -> None:
        """Note a response, an outcome or the result of a batch."""
        if isinstance(result, RelayCreateResponse | Created):
            self._tokens.add(result.relay_token)
        elif isinstance(result, BatchResult) and all(result is not known for known in self._results):
            self._results.append(result)

    @property
    def received_tokens(self) -> set[str]:
        """The relay tokens that the program has received."""
        outcomes = [outcome for result in self._results for outcome in result.succeeded]
        return self._tokens | {outcome.relay_token for outcome in outcomes if isinstance(outcome, Created)}
