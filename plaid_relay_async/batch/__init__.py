"""Batches: one call for each request, with bounded concurrency and one outcome for each."""

from plaid_relay_async.batch.call import AcquireRecorder, AttemptForbiddenError, Phase, TrackedCall
from plaid_relay_async.batch.input import Requests, Tokens
from plaid_relay_async.batch.operations import (
    CREATE,
    GET,
    GET_PDF,
    OPERATIONS,
    REFRESH,
    REMOVE,
    BatchOperation,
    ReadOutcome,
    ReadResult,
)
from plaid_relay_async.batch.options import BatchOptions, BatchSettings
from plaid_relay_async.batch.protocols import (
    CallContext,
    CallRecorder,
    JournalProtocol,
    LostRaceError,
)
from plaid_relay_async.batch.results import BatchResult, CreationResult, OutcomeT, Progress, ResultT
from plaid_relay_async.batch.runner import Batch
from plaid_relay_async.batch.stopping import Sending
from plaid_relay_async.batch.task_queue import TaskQueueProtocol

__all__ = [
    "CREATE",
    "GET",
    "GET_PDF",
    "OPERATIONS",
    "REFRESH",
    "REMOVE",
    "AcquireRecorder",
    "AttemptForbiddenError",
    "Batch",
    "BatchOperation",
    "BatchOptions",
    "BatchResult",
    "BatchSettings",
    "CallContext",
    "CallRecorder",
    "CreationResult",
    "JournalProtocol",
    "LostRaceError",
    "OutcomeT",
    "Phase",
    "Progress",
    "ReadOutcome",
    "ReadResult",
    "Requests",
    "ResultT",
    "Sending",
    "TaskQueueProtocol",
    "Tokens",
    "TrackedCall",
]
