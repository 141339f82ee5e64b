"""An upstream server on raw sockets that records each request's bytes and sends scripted responses."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from fault_proxy import FaultProxy, WireFault
from raw_http import build_response, header_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Recorder(FaultProxy):
    """A server on a free port of 127.0.0.1.

    Attributes:
        requests: the received requests, in order; one without a Content-Length as far as it was received.
        respond: returns the pieces of the response to a request; by default that of a creation.
        ending: what happens to the connection after a response.
        pause: the seconds between two pieces.
    """

    def __init__(self) -> None:
        super().__init__(0, lambda: WireFault(False, self._record_request, self.ending, pause=self.pause))
        self.requests: list[bytes] = []
        self.respond: Callable[[bytes], Iterable[bytes]] = self.creation_response
        self.ending: Any = "keep"
        self.pause = 0.0
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def creation_response(self, _: bytes) -> Iterable[bytes]:
        """Return Plaid's response to a creation, with a different token each time."""
        number = next(self._numbers)
        response = {"relay_token": f"credit-relay-sandbox-{number}", "request_id": f"request{number}"}
        return [build_response(200, json.dumps(response).encode())]

    def fields(self, number: int = -1) -> list[tuple[str, str]]:
        """Return the header fields of a request."""
        return header_fields(self.requests[number])

    def body(self, number: int = -1) -> Any:
        """Return the body of a request, which has to be JSON that every parser accepts."""
        return json.loads(self.requests[number].partition(b"\r\n\r\n")[2], parse_constant=_no_json)

    def _record_request(self, request: bytes, _: bytes) -> Iterable[bytes]:
        self.requests.append(request)
        return self.respond(request)


def _no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")
