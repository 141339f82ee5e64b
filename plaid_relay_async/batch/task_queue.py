"""The protocol of a task queue, whose workers make the calls of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from plaid_relay_async.batch.protocols import JournalProtocol

if TYPE_CHECKING:
    from plaid_relay_async.batch.call import TrackedCall
    from plaid_relay_async.batch.operations import BatchOperation


class TaskQueueProtocol(JournalProtocol, Protocol):
    """A queue of calls for workers on other machines; `plaid_relay_async.temporal.TaskQueue` is one.

    It is also the journal of the batch: its recorders have the outcomes that are recorded already, and the
    workers record the others.
    """

    @property
    def run(self) -> str:
        """The run name."""
        ...

    @property
    def drain_seconds(self) -> float:
        """The seconds for which a batch waits, once it has stopped, for the calls that workers have begun."""
        ...

    async def send(
        self, operation: BatchOperation[Any, Any], request: Any, *, gate: TrackedCall[Any]
    ) -> object:
        """Add a call to the queue, wait until a worker has made it, and return the response.

        Args:
            operation: the operation.
            request: its request.
            gate: the call, whose number of attempts it sets. While the call may be in flight, its phase is
                `IN_FLIGHT`.

        Raises:
            AttemptForbiddenError: the batch has stopped, and no worker will make the call.
            PlaidRelayError: the call has failed, or its outcome is unknown.
        """
        ...
