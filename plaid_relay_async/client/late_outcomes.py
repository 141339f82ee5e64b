"""Late outcomes: outcomes of calls whose task was cancelled after an attempt had been sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from plaid_relay_async import batch, codec, telemetry, watching
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.outcomes import Completed, Failed, Unknown, outcome_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.outcomes import LateOutcome
    from plaid_relay_async.telemetry import ObservedCall

_TOKEN_ISSUING: Final = {endpoint.path for endpoint in codec.ENDPOINTS if endpoint.issues is not None}


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
        observed: ObservedCall,
        endpoint: Endpoint[Any, Any],
        result: Any,
        *,
        attempts: int,
        elapsed: float,
    ) -> None:
        """Report the outcome of a call without a journal, from its response or error."""
        operation: batch.BatchOperation[Any, Any] = batch.OPERATIONS.get(
            endpoint.path, batch.BatchOperation(endpoint, Completed, batch.BatchResult)
        )
        outcome = operation.build_outcome(observed.request, result, attempts=attempts, elapsed=elapsed)
        self.report(observed, outcome)

    def report(self, observed: ObservedCall, outcome: LateOutcome) -> None:
        """Pass an outcome to the callback, or log it if neither a callback nor a journal receives it."""
        if self._callback is None:
            # That an outcome is unknown was logged at the end of the call, and there is nothing to receive.
            if not outcome.journalled and not isinstance(outcome, Unknown):
                _report_lost(observed, outcome, "pass RelayClient(on_late_outcome=...) to receive it")
            return
        try:
            self._callback(outcome)
        # The cancellation of this task is raised next, whatever the callback raises.
        except BaseException as error:  # noqa: BLE001  # any error of the caller's code
            # Only the class of the error: its text may contain a token.
            _report_lost(observed, outcome, f"on_late_outcome raised {type(error).__name__}")
            telemetry.contain(error)
            return
        if (watcher := watching.watcher) is not None:
            watcher.add_received(outcome)


def _report_lost(observed: ObservedCall, outcome: LateOutcome, remark: str) -> None:
    """Log an outcome that no code receives; if a token is lost, report it to the event loop as well.

    A program that hasn't configured `logging` shows no record of this package. So the message about a lost
    token is also passed to the event loop's exception handler, without the token. asyncio does the same with
    an exception that no code retrieves.
    """
    request_id = outcome.request_id
    if request_id is not None and observed.secret is not None:
        request_id = codec.redact_request_secrets(request_id, outcome.request, observed.secret)
    fields: dict[str, Any] = {
        **telemetry.error_fields(getattr(outcome, "error", None)),
        "request_id": request_id,
        "outcome": outcome_word(outcome),
        "attempts": outcome.attempts,
        "duration": outcome.elapsed,
        "remark": f"the task of the call was cancelled before; {remark}",
    }
    observed.log(logging.WARNING, "late_outcome", **fields)
    if observed.group.operation in _TOKEN_ISSUING and not isinstance(outcome, Failed | Unknown):
        message = f"a token was lost: {observed.message_of('late_outcome', **fields)}"
        try:
            asyncio.get_running_loop().call_exception_handler({"message": message})
        # A handler of the program may raise, and must not replace the cancellation.
        except BaseException as error:  # noqa: BLE001  # any error of the program's code
            telemetry.contain(error)
