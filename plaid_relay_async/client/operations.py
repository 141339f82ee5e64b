"""The base class of the client's groups of operations, and the type of their calls."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from plaid_relay_async.transport import Transport

T = TypeVar("T")

# The methods of the groups are plain functions that return a coroutine. The frame with a token among its
# arguments has returned before the request is sent, so no traceback of a failed request contains it.
Call: TypeAlias = Coroutine[Any, Any, T]


class OperationGroup:
    """A group of operations, such as `client.relay`; each method passes a request record to the transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
