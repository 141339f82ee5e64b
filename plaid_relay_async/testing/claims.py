"""Claims: the relay tokens that the clients of a test have returned to their callers.

The simulator's ledger has all tokens that were issued, and the difference is what the program has lost.
"""

from __future__ import annotations

import functools
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from plaid_relay_async import Created
from plaid_relay_async.client import Relay
from plaid_relay_async.client.late_outcomes import LateOutcomes
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


class Claims:
    """The relay tokens that any `RelayClient` of this process has returned, while it is recorded."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()

    def __contains__(self, token: object) -> bool:
        return token in self._tokens

    def record(self, patch: pytest.MonkeyPatch) -> None:
        """Record the tokens that clients return, also those that exist already, until the patch is undone.

        A client returns a token as the result of `create`, as an outcome of `create_many`, or as a late
        outcome that a callback receives.
        """
        patch.setattr(Relay, "create", self._recording_create(Relay.create))
        patch.setattr(Relay, "create_many", self._recording_create_many(Relay.create_many))
        patch.setattr(LateOutcomes, "report", self._recording_report(LateOutcomes.report))

    def _add(self, outcome: object) -> None:
        if isinstance(outcome, Created):
            self._tokens.add(outcome.relay_token)

    # Like the methods that they replace, these functions leave no frame with tokens in a traceback.

    def _recording_create(self, create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def await_response(call: Awaitable[Any]) -> Any:
            response = await call
            self._tokens.add(response.relay_token)
            return response

        @strip_traceback
        @functools.wraps(create)
        def recording(*arguments: Any, **options: Any) -> Awaitable[Any]:
            return await_response(create(*arguments, **options))

        return recording

    def _recording_create_many(self, create_many: Callable[..., Any]) -> Callable[..., Any]:
        def receive(callback: Callable[[object], object] | None, outcome: object) -> None:
            self._add(outcome)
            if callback is not None:
                callback(outcome)

        @strip_traceback
        @functools.wraps(create_many)
        def recording(*arguments: Any, **options: Any) -> Any:
            callback = options.get("on_outcome")
            # The original rejects any other callback.
            if callback is None or (callable(callback) and not inspect.iscoroutinefunction(callback)):
                options["on_outcome"] = partial(receive, callback)
            return create_many(*arguments, **options)

        return recording

    def _recording_report(self, report: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(report)
        def recording(late_outcomes: LateOutcomes, observed: Any, outcome: Any) -> None:
            if not late_outcomes.is_lost(outcome):
                self._add(outcome)
            report(late_outcomes, observed, outcome)

        return recording
