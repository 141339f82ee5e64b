"""One line for each call: who, which operation, which partner, what came of it; never a token or a secret."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from attrs import define, field

from plaid_relay_async.codec import looks_like_a_token
from plaid_relay_async.gateway.keys import KEY_PREFIX

log = logging.getLogger(__name__)

_LONGEST_PARTNER = 64  # characters; Plaid's ids have 24


@define(eq=False)
class Entry:
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
    began: float = field(factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it came in."""
        return time.monotonic() - self.began

    def tell(self) -> None:
        """Write the line, as JSON."""
        told = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self.caller,
            "operation": self.operation,
            "partner": _shown(self.partner),
            "status": self.status,
            "error_code": self.error_code,
            "request_id": _shown(self.request_id),
            "seconds": round(self.seconds, 3),
            "delivered": self.delivered,
        }
        log.info("%s", json.dumps(told))


def _shown(word: str | None) -> str | None:
    """Give an id that a caller or a server chose, unless it may be something else."""
    if word is None:
        return None
    secret = looks_like_a_token(word) or KEY_PREFIX in word
    return "[hidden]" if secret else word[:_LONGEST_PARTNER]
