"""Bulk runs over several machines, on Temporal.

It requires the extra `temporal`, and a journal in PostgreSQL.
`TaskQueue` is passed to `client.relay.create_many` or `remove_many`, and `Worker` makes the calls.
"""

try:
    from plaid_relay_async.temporal.payloads import data_converter
    from plaid_relay_async.temporal.task_queue import RUN_ATTRIBUTE, Submitted, TaskQueue
    from plaid_relay_async.temporal.worker import Worker
except ModuleNotFoundError as error:
    message = f"runs on Temporal need {error.name}: pip install 'plaid_relay_async[temporal]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["RUN_ATTRIBUTE", "Submitted", "TaskQueue", "Worker", "data_converter"]
