"""An upstream of bare sockets: it keeps each request to the byte, and answers what it is told to."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from fault_proxy import FaultProxy, WireFault
from raw_http import build_response, header_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Recorder(FaultProxy):
    """Listens on a free port of 127.0.0.1.

    Attributes:
        requests: all that came, in order; what isn't a request with a Content-Length is kept as far as it came.
        says: gives the pieces of an answer from the request; by default a creation's.
        then: what is done to the connection afterwards.
        pause: seconds between two pieces.
    """

    def __init__(self) -> None:
        super().__init__(0, lambda: WireFault(False, self._answer, self.then, pause=self.pause))
        self.requests: list[bytes] = []
        self.says: Callable[[bytes], Iterable[bytes]] = self.created
        self.then: Any = "keep"
        self.pause = 0.0
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def created(self, _: bytes) -> Iterable[bytes]:
        """What Plaid answers to a creation, with another token each time."""
        number = next(self._numbers)
        made = {"relay_token": f"credit-relay-sandbox-{number}", "request_id": f"request{number}"}
        return [build_response(200, json.dumps(made).encode())]

    def fields(self, number: int = -1) -> list[tuple[str, str]]:
        """The header fields of a request."""
        return header_fields(self.requests[number])

    def body(self, number: int = -1) -> Any:
        """The body of a request, which has to be JSON that any parser takes."""
        return json.loads(self.requests[number].partition(b"\r\n\r\n")[2], parse_constant=_no_json)

    def _answer(self, request: bytes, _: bytes) -> Iterable[bytes]:
        self.requests.append(request)
        return self.says(request)


def _no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")
