"""Batches: one call for each request, with bounded concurrency and one outcome for each."""

from plaid_relay_async.batch.input import Requests, Tokens
from plaid_relay_async.batch.operations import CREATE, GET, GET_PDF, REFRESH, REMOVE, BatchOperation
from plaid_relay_async.batch.protocols import CallContext, CallRecorder, JournalProtocol, LostRaceError
from plaid_relay_async.batch.runner import Batch

__all__ = [
    "CREATE",
    "GET",
    "GET_PDF",
    "REFRESH",
    "REMOVE",
    "Batch",
    "BatchOperation",
    "CallContext",
    "CallRecorder",
    "JournalProtocol",
    "LostRaceError",
    "Requests",
    "Tokens",
]
