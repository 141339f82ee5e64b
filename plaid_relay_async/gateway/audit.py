"""The audit log: a line of JSON for each call, with its caller, operation, partner and result.

No line contains a token, a key or a secret.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from attrs import define, field

from plaid_relay_async.telemetry.events import redact_id, redact_name

_log = logging.getLogger(__name__)


@define(eq=False)
class AuditRecord:
    """The facts about one call, set while the call proceeds.

    Attributes:
        caller: the name of the key; None until a valid key is found.
        operation: the path; None until the host and the method are checked, or if it isn't an operation's.
        partner: the `secondary_client_id` of a creation.
        status: the HTTP status of the response.
        error_code: the `error_code` of a response that the gateway created.
        request_id: Plaid's, or the gateway's for a response that the gateway created.
        delivered: whether the complete response was written to the caller's connection.
        started_at: when the request arrived, by `time.monotonic`.
    """

    caller: str | None = None
    operation: str | None = None
    partner: str | None = None
    status: int | None = None
    error_code: str | None = None
    request_id: str | None = None
    delivered: bool = False
    started_at: float = field(factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The seconds since the request arrived."""
        return time.monotonic() - self.started_at

    def write(self) -> None:
        """Write the line to the log, as JSON."""
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self.caller,
            "operation": self.operation,
            "partner": redact_name(self.partner),
            "status": self.status,
            "error_code": self.error_code,
            "request_id": redact_id(self.request_id),
            "seconds": round(self.seconds, 3),
            "delivered": self.delivered,
        }
        _log.info("%s", json.dumps(fields))
