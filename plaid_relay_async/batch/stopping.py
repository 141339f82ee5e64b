"""The errors because of which a batch stops sending: those that further requests would get as well."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from plaid_relay_async.batch.operations import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.errors import PlaidRelayError

# A batch stops after this number of errors that every request would get, without a success in between. The
# same number of errors of one report stops the requests for that report.
SHARED_ERROR_LIMIT: Final = 3
# Only the reports with the latest errors are tracked, so that the stored errors need constant memory.
_MAX_TRACKED_REPORTS: Final = 256


class ReportErrors:
    """Counts the errors of each report, for the reports that failed most recently. It stores no tokens."""

    def __init__(self, report_key: Callable[[Any], tuple[str, ...]]) -> None:
        self._report_key = report_key
        self._errors: dict[bytes, tuple[int, PlaidRelayError]] = {}

    def record_error(self, request: object, error: PlaidRelayError) -> None:
        """Count an error of the request's report."""
        digest = digest_of(self._report_key(request))
        count, _ = self._errors.pop(digest, (0, error))
        # A copy has no traceback, whose frames would keep responses in memory.
        self._errors[digest] = (count + 1, copy.copy(error))
        if len(self._errors) > _MAX_TRACKED_REPORTS:
            del self._errors[next(iter(self._errors))]

    def clear(self, request: object) -> None:
        """Forget the errors of the request's report, because a request for it succeeded."""
        if self._errors:
            self._errors.pop(digest_of(self._report_key(request)), None)

    def report_stop_cause(self, request: object) -> PlaidRelayError | None:
        """Return the error that stops the requests for the same report, or `None`."""
        if not self._errors:
            return None
        count, error = self._errors.get(digest_of(self._report_key(request)), (0, None))
        return error if count >= SHARED_ERROR_LIMIT else None


def stopped_report_error(cause: PlaidRelayError, *, sent: bool, attempts: int) -> PlaidRelayError:
    """Return the error of a request that isn't sent because others for its report failed with `cause`."""
    error = copy.copy(cause)
    not_sent = "not sent again" if sent else "not sent"
    error.args = (f"{not_sent} after {SHARED_ERROR_LIMIT} errors of the same report: {cause.args[0]}",)
    error.sent, error.attempts = sent, attempts
    vars(error).pop("request_id", None)  # it identifies another request
    return error
