"""One line for each call: who, which operation, which partner, what came of it; never a token or a secret."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from attrs import define, field

from plaid_relay_async.codec import contains_token
from plaid_relay_async.gateway.keys import KEY_PREFIX

_log = logging.getLogger(__name__)

_MAX_IDENTIFIER_LENGTH = 64  # characters; Plaid's ids have 24


@define(eq=False)
class AuditRecord:
    """What is told of a call, filled in as it goes on.

    Attributes:
        caller: the name of its key.
        operation: its path, of a known one.
        partner: the `secondary_client_id` that a creation names.
        status: of the answer.
        error_code: of the gateway's own answer, if it gave one.
        request_id: Plaid's, or the gateway's for its own answer.
        delivered: whether the caller was there to take the answer.
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
        """Since it came in."""
        return time.monotonic() - self.started_at

    def write(self) -> None:
        """Write the line, as JSON."""
        told = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self.caller,
            "operation": self.operation,
            "partner": _redact_identifier(self.partner),
            "status": self.status,
            "error_code": self.error_code,
            "request_id": _redact_identifier(self.request_id),
            "seconds": round(self.seconds, 3),
            "delivered": self.delivered,
        }
        _log.info("%s", json.dumps(told))


def _redact_identifier(identifier: str | None) -> str | None:
    """Give an id that a caller or a server chose, unless it may be something else."""
    if identifier is None:
        return None
    secret = contains_token(identifier) or KEY_PREFIX in identifier
    return "[hidden]" if secret else identifier[:_MAX_IDENTIFIER_LENGTH]
