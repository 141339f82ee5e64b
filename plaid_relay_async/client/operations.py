"""What the client's namespaces share."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from plaid_relay_async.transport import Transport

T = TypeVar("T")

# The methods of the namespaces are plain functions that give a coroutine: the frame that holds a token as an
# argument has returned by the time that anything can go wrong on the wire, so that no traceback shows it.
Call: TypeAlias = Coroutine[Any, Any, T]


class Namespace:
    """A namespace: methods that make a request and hand it to the transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
