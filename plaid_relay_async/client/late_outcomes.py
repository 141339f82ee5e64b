"""Late outcomes: outcomes of calls whose task was cancelled after an attempt had been sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from plaid_relay_async import batch, telemetry, watching
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.outcomes import Completed, outcome_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.outcomes import LateOutcome


class LateOutcomes:
    """The recipient of late outcomes: the caller's function or, without one, the log.

    Raises:
        ConfigurationError: the callback is not callable, or is async.
    """

    def __init__(self, callback: Callable[[LateOutcome], object] | None) -> None:
        is_function = callable(callback) and not inspect.iscoroutinefunction(callback)
        if callback is not None and not is_function:
            raise ConfigurationError("on_late_outcome must be a plain function, not an async one")
        self._callback = callback

    def report_call(
        self,
        endpoint: Endpoint[Any, Any],
        request: object,
        result: Any,
        *,
        attempts: int,
        elapsed: float,
        call_id: str,
    ) -> None:
        """Report the outcome of a call without a journal, from its response or error."""
        operation: batch.BatchOperation[Any, Any] = batch.OPERATIONS.get(
            endpoint.path, batch.BatchOperation(endpoint, Completed, batch.BatchResult)
        )
        outcome = operation.build_outcome(request, result, attempts=attempts, elapsed=elapsed)
        self.report(endpoint.path, outcome, call_id)

    def report(self, path: str, outcome: LateOutcome, call_id: str) -> None:
        """Pass an outcome to the callback, or log it if neither a callback nor a journal receives it."""
        if self._callback is None:
            if not outcome.journalled:
                _log_outcome(path, outcome, call_id, "pass RelayClient(on_late_outcome=...) to receive it")
            return
        try:
            self._callback(outcome)
        # The callback isn't async, so a CancelledError comes from its own code. The cancellation of this task
        # is raised next, whatever the callback raises.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # any error of the caller's code
            # Only the class of the error: its text may contain a token.
            _log_outcome(path, outcome, call_id, f"on_late_outcome raised {type(error).__name__}")
            return
        if (watcher := watching.watcher) is not None:
            watcher.add_received(outcome)


def _log_outcome(path: str, outcome: LateOutcome, call_id: str, remark: str) -> None:
    telemetry.log(
        telemetry.CALLS,
        logging.WARNING,
        "late_outcome",
        **telemetry.call_fields(path, outcome.request, call_id),
        outcome=outcome_word(outcome),
        attempts=outcome.attempts,
        duration=outcome.elapsed,
        **telemetry.error_fields(getattr(outcome, "error", None)) | {"request_id": outcome.request_id},
        remark=f"the task of the call was cancelled before; {remark}",
    )
