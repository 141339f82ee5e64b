"""A received request: its parts, and the record of the last requests."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from attrs import evolve, field, frozen


@frozen
class ReceivedRequest:
    """A request to one of Plaid's paths, and its result.

    Attributes:
        path: the path.
        client_id: the client_id in the headers or the body, whether or not it is valid.
        secondary_client_id: the partner that the body names.
        request_id: the ID of the response, whether or not it was sent.
        executed: whether the request was executed.
        status: the status of the response; None if none was sent yet, or the connection was closed instead.
        headers: the headers, by their names in lower case.
    """

    path: str
    client_id: str | None
    secondary_client_id: str | None
    request_id: str
    executed: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)


@frozen
class ParsedRequest:
    """A request to one of Plaid's paths, with its complete body, or None if that isn't a JSON object."""

    request_id: str
    request: web.BaseRequest = field(repr=False)
    body: dict[str, Any] | None = field(repr=False)

    def credential(self, name: str, header: str) -> Any:
        """Return a credential from its header, otherwise from the body.

        Plaid doesn't publish which of the two it uses if they differ: our choice.
        """
        return self.request.headers.get(header) or (self.body or {}).get(name)

    @property
    def partner(self) -> Any:
        """The `secondary_client_id` of the body, which may be any JSON value."""
        return (self.body or {}).get("secondary_client_id")

    @property
    def client_id(self) -> str | None:
        """The client_id, if it is a string."""
        client_id = self.credential("client_id", "PLAID-CLIENT-ID")
        return client_id if isinstance(client_id, str) else None

    def to_received_request(self) -> ReceivedRequest:
        """Return the record of the request, before it is executed."""
        return ReceivedRequest(
            path=self.request.path,
            client_id=self.client_id,
            secondary_client_id=self.partner if isinstance(self.partner, str) else None,
            request_id=self.request_id,
            headers={name.lower(): value for name, value in self.request.headers.items()},
        )


class RequestLog:
    """The records of the last requests, in the order in which they arrived.

    Args:
        size: the maximum number of records.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: OrderedDict[str, ReceivedRequest] = OrderedDict()

    def add(self, received: ReceivedRequest) -> None:
        """Add a record, and remove the oldest one if there are too many."""
        self._records[received.request_id] = received
        if len(self._records) > self._size:
            self._records.popitem(last=False)

    def update(self, request_id: str, **changes: Any) -> None:
        """Change the record of a request, unless it was removed."""
        if request_id in self._records:
            self._records[request_id] = evolve(self._records[request_id], **changes)

    @property
    def records(self) -> tuple[ReceivedRequest, ...]:
        """The records."""
        return tuple(self._records.values())


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a body, or None if it isn't one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8, and thousands of brackets
        return None
    return body if isinstance(body, dict) else None


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine.

    A web page could otherwise use the simulator by DNS rebinding. Its Host header names another machine.
    """
    try:
        return is_loopback_name(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_loopback_name(name: str) -> bool:
    """Return whether the name or address of a host, without a port, is one of this machine."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
