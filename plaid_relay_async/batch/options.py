"""The options of a batch: keyword arguments of the `*_many` methods, and a record with their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypedDict

from attrs import frozen

from plaid_relay_async.batch.results import OutcomeT, Progress
from plaid_relay_async.config import RetryPolicy, check_count
from plaid_relay_async.errors import ConfigurationError


class BatchOptions(TypedDict, Generic[OutcomeT], total=False):
    """The keyword arguments that all methods with `_many` in their names have.

    Attributes:
        concurrency: the maximum number of concurrent calls, which share the client's `connections`. Default:
            50.
        on_outcome: a function, not async, called with each outcome before the batch delivers it.
        on_progress: a function, not async, called with a `Progress` after each outcome.
        allow_duplicates: whether to make a call for each of several requests for the same relay token or, for
            creations, for the same pair of report and partner. By default the second one is a `Failed`; to
            detect it takes about 100 bytes for each request.
        timeout: seconds for all attempts of one call, without Plaid's pauses and queueing; the default is the
            client's `Timeouts.total`.
        retry: the retry policy; the default is the client's.
    """

    concurrency: int
    on_outcome: Callable[[OutcomeT], object] | None
    on_progress: Callable[[Progress], object] | None
    allow_duplicates: bool
    timeout: float | None
    retry: RetryPolicy | None


@frozen(kw_only=True)
class BatchSettings(Generic[OutcomeT]):
    """The `BatchOptions` of a batch, checked and with their defaults.

    Raises:
        ConfigurationError: the concurrency is invalid, or a callback is async.
    """

    concurrency: int = 50
    on_outcome: Callable[[OutcomeT], object] | None = None
    on_progress: Callable[[Progress], object] | None = None
    allow_duplicates: bool = False
    timeout: float | None = None
    retry: RetryPolicy | None = None

    def __attrs_post_init__(self) -> None:
        check_count("concurrency", self.concurrency)
        callbacks: tuple[Any, ...] = (self.on_outcome, self.on_progress)
        if any(map(inspect.iscoroutinefunction, callbacks)):
            raise ConfigurationError("on_outcome and on_progress must be plain functions, not async ones")
