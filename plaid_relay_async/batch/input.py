"""The input of a batch: its requests, read one by one, and the detection of duplicates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from attrs import define, field

from plaid_relay_async.batch.operations import RequestIdentity
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.redaction import strip_traceback

Q = TypeVar("Q")

Requests: TypeAlias = Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest]
Tokens: TypeAlias = Iterable[str | Q] | AsyncIterable[str | Q]


class RequestReader:
    """Reads requests one by one, from an iterable or an async iterable.

    Attributes:
        reading_task: the task that waits for an async iterable, or `None`. Cancelling it would close an async
            generator, and the rest of the input would be lost.
    """

    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        request_type: type[Any],
        request_from_token: Callable[[Any], Any] | None,
    ) -> None:
        self._request_type = request_type
        self._request_from_token = request_from_token
        self._name = "requests" if request_from_token is None else "relay_tokens"
        self._read_count = 0
        self._lock = asyncio.Lock()
        self._async_iterator: AsyncIterator[Any] | None = None
        self.reading_task: asyncio.Task[Any] | None = None
        self._iterator: Iterator[Any] = iter(())
        # A string is an iterable of characters, which is never what the caller means.
        if isinstance(source, str | bytes):
            raise RequestValidationError.of(
                self._name, "must be an iterable, not one string: wrap it in a list"
            )
        if isinstance(source, AsyncIterable):
            self._async_iterator = aiter(source)
        else:
            self._iterator = iter(source)

    async def read_next(self) -> Any:
        """Return the next request, or `None` at the end of the input.

        Raises:
            RequestValidationError: an item isn't a request or, where tokens are allowed, a valid token.
        """
        try:
            if self._async_iterator is None:
                return self._to_request(next(self._iterator))
            # An async generator can't be advanced by two tasks at the same time.
            async with self._lock:
                self.reading_task = asyncio.current_task()
                try:
                    return self._to_request(await anext(self._async_iterator))
                finally:
                    self.reading_task = None
        except (StopIteration, StopAsyncIteration):
            return None

    @strip_traceback
    def _to_request(self, item: Any) -> Any:
        place = f"{self._name}[{self._read_count}]"
        self._read_count += 1
        if isinstance(item, self._request_type):
            return item
        if self._request_from_token is None:
            problem = f"must be a {self._request_type.__name__}, not {type(item).__name__}"
            raise RequestValidationError.of(place, problem)
        try:
            return self._request_from_token(item)
        except RequestValidationError as error:
            problem = error.problem
        # It is raised outside the handler, so that it has no context, whose frames may have the token.
        raise RequestValidationError.of(place, problem)


@define(eq=False, repr=False)
class DuplicateFilter:
    """Detects duplicates by a digest of each request: about 100 bytes a request, and no tokens.

    Attributes:
        identity: see `BatchOperation.identity`.
    """

    identity: RequestIdentity
    _seen: set[bytes] = field(factory=set, init=False)

    def is_duplicate(self, request: object) -> bool:
        """Return whether a request with the same identity was seen before, and remember this one."""
        digest = self.identity.digest(request)
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False
