"""Runs on Temporal: how `bulk` and `revoke` use one, and the commands `worker`, `rate` and `cancel`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from attrs import asdict, define, evolve
from cyclopts import Parameter

from plaid_relay_async.cli.arguments import read_value
from plaid_relay_async.cli.bulk import BatchRunner, recorded_in
from plaid_relay_async.cli.calls import ClientOptions
from plaid_relay_async.cli.journal_options import (  # cyclopts reads them at run time
    ExistingJournal,
    Lease,
    RunName,
    build_journal,
    run_query,
)
from plaid_relay_async.cli.logs import JSONFormatter, LogHandler, print_message, writes_json
from plaid_relay_async.cli.logs import handler as package_handler
from plaid_relay_async.cli.messages import ExitStatus, UsageError, sanitize
from plaid_relay_async.cli.options import Concurrency  # noqa: TC001
from plaid_relay_async.cli.output import open_stdout, write_all
from plaid_relay_async.cli.progress import OutcomeCounts
from plaid_relay_async.cli.revoking import TokensToRevoke
from plaid_relay_async.cli.serving import handling_log
from plaid_relay_async.cli.signals import Signals, signals
from plaid_relay_async.cli.temporal_options import SubmissionOptions, TemporalOptions, parse_rate, reason_of
from plaid_relay_async.errors import JournalError, NotSentError
from plaid_relay_async.telemetry import PACKAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from temporalio.client import Client

    from plaid_relay_async.cli.temporal_options import TemporalConnection
    from plaid_relay_async.journal import Journal
    from plaid_relay_async.temporal import TaskQueue
    from plaid_relay_async.temporal.rates import TaskQueueRate

# `--concurrency` limits calls that wait for their outcomes. Adding a call to the queue is one short request,
# and more of them at once don't make a server faster.
_SUBMIT_CONCURRENCY = 100

# ---------------------------------------------------------------------------------- batches on a task queue


def batch_concurrency(options: TemporalOptions, concurrency: int | None) -> int:
    """Return the concurrency of a batch: the option `--concurrency`, or its default."""
    if concurrency is not None:
        return concurrency
    # A queued call has no connection to Plaid. The workers need enough of them not to be idle.
    return 50 if options.task_queue is None else 500


def recording_on(
    connection: TemporalConnection | None, journal: Journal | None, rate: float | None = None
) -> contextlib.AbstractAsyncContextManager[dict[str, Any]]:
    """Return the attribute `recording` of a `BatchRunner`; with a connection, workers make the calls.

    Args:
        connection: the connection to Temporal.
        journal: the journal; required with a connection.
        rate: the new rate limit of the task queue, or `None` for no change.
    """
    if connection is None:
        return recorded_in(journal)
    assert journal is not None  # noqa: S101  # a connection requires one; see `TemporalOptions.connection_for`
    return _queued_on(connection, journal, rate)


@contextlib.asynccontextmanager
async def _queued_on(
    connection: TemporalConnection, journal: Journal, rate: float | None
) -> AsyncIterator[dict[str, Any]]:
    from plaid_relay_async.temporal.rates import set_rate

    # Warnings show why calls wait. `restored_logs` removes the handler.
    PACKAGE.addHandler(package_handler)
    async with journal:
        queue, client = await _connect(connection, journal)
        if rate is not None:
            with connection.naming_server():
                await set_rate(client, connection.task_queue, rate)
        yield {"task_queue": queue}


async def _connect(connection: TemporalConnection, journal: Journal) -> tuple[TaskQueue, Client]:
    """Connect to Temporal, and return the task queue and the client of Temporal.

    Args:
        connection: the connection.
        journal: the open journal of the run.

    Raises:
        NotSentError: the server can't be used.
    """
    from plaid_relay_async.temporal import TaskQueue

    client = await connection.open()
    search_attribute = await connection.has_search_attribute(client)
    queue = TaskQueue(client, connection.task_queue, journal=journal, search_attribute=search_attribute)
    return queue, client


async def read_tokens(
    connection: TemporalConnection | None, journal: Journal, partner: str | None
) -> TokensToRevoke:
    """Return the tokens that the run of a journal created; with a connection, check the task queue before.

    Args:
        connection: the connection to Temporal.
        journal: the open journal of the run.
        partner: the partner to read the tokens of; `None` reads those of all partners.

    Raises:
        JournalError: the run doesn't exist or is in progress, or the journal can't be read.
        NotSentError: the Temporal server can't be used.
    """
    if connection is None:
        return await TokensToRevoke.read(journal, journal.run, partner)
    # The queue is read before the journal, which has the outcome of each call that has left the queue.
    await _check_not_queued(connection, journal, partner)
    return evolve(await TokensToRevoke.read(journal, journal.run, partner), maybe_queued=0)


async def _check_not_queued(connection: TemporalConnection, journal: Journal, partner: str | None) -> None:
    """Check that no creation of the run is on the task queue.

    Args:
        connection: the connection to Temporal.
        journal: the open journal of the run.
        partner: the partner to check the creations of; `None` checks those of all partners.

    Raises:
        JournalError: there are such creations, or the journal can't be read.
        NotSentError: the server can't be used.
    """
    from plaid_relay_async.temporal import TaskQueue

    queue = TaskQueue(await connection.open(), connection.task_queue, journal=journal)
    if count := await queue.count_pending(partner=partner):
        raise JournalError(
            f"the run {journal.run!r} is in progress; creations on the task queue: {count:,}",
            advice="Cancel the run with plaid-relay cancel, or wait for its end; then repeat the command.",
        )


def runner_of(options: SubmissionOptions) -> type[BatchRunner]:
    """Return the class that sends the batch of `bulk`."""
    return DetachedRunner if options.detach else BatchRunner


@define(eq=False)
class DetachedRunner(BatchRunner):
    """Adds the requests to a task queue, and doesn't wait for their outcomes."""

    outcome_kinds: ClassVar[tuple[str, ...]] = ("started", "pending", "recorded")

    async def __call__(self) -> OutcomeCounts:
        """Add the requests to the queue.

        Returns:
            The number of calls that were added, that were on the queue already, and that have an outcome.

        Raises:
            JournalError: the journal can't be opened, read or written.
            NotSentError: the Temporal server can't be used.
            ConfigurationError: the journal has another key, or Temporal rejects a call.
            asyncio.CancelledError: a signal was received.
        """
        async with self.recording as arguments, self.client:
            queue: TaskQueue = arguments["task_queue"]
            concurrency = min(self.concurrency, _SUBMIT_CONCURRENCY)
            submitted = await queue.submit(self.client, self._iter_requests(), concurrency=concurrency)
        self.display.print_message(
            "the workers make the calls; to follow the run, repeat the command without --detach, "
            "--retry-failed and --retry-unknown; for its counts, use plaid-relay status"
        )
        return OutcomeCounts(Counter(asdict(submitted)), Counter())

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:  # noqa: ARG002
        """Return the exit status: everything is on the queue."""
        return ExitStatus.DONE


# --------------------------------------------------------------------------------------------- workers


def worker(
    *,
    existing_journal: ExistingJournal,
    temporal_options: TemporalOptions = TemporalOptions(),  # noqa: B008  # frozen
    concurrency: Concurrency = 50,
    lease: Lease = 30.0,
    journal_namespace: Annotated[
        str | None,
        Parameter(help="Namespace of the journal's pairs, for runs whose Journal has one in Python."),
    ] = None,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Make the calls of runs on Temporal, until a signal.

    Any number of workers may share a task queue.

    They need the journal, the keys and the Plaid credentials of the runs.

    A call ends after a minute, even if --timeout is longer.

    At the first signal, it waits for the calls in flight, about a minute at most; a second one abandons them.
    """
    journal = build_journal(existing_journal.journal, key=existing_journal.key_file, lease=lease)
    connection = temporal_options.connection(journal, existing_journal.key_file)
    client_options.build_client(concurrency)  # checks the options before anything is opened

    async def work() -> ExitStatus:
        from plaid_relay_async.temporal import Worker
        from plaid_relay_async.temporal.rates import SharedRate

        temporal = await connection.open()
        shared = SharedRate(temporal, connection.task_queue)
        client = client_options.build_client(concurrency, rate_limiter=shared, on_attempt=shared.on_attempt)
        async with client:
            temporal_worker = Worker(
                temporal,
                connection.task_queue,
                client,
                read_value(existing_journal.journal, "--journal"),
                key=existing_journal.key_file,
                namespace=journal_namespace,
                concurrency=concurrency,
                lease=lease,
            )

            def print_queue() -> None:
                sys.stdout.write(f"listening on {sanitize(connection.task_queue)} at {connection.address}\n")
                sys.stdout.flush()

            sharing_task = asyncio.ensure_future(shared.run())
            try:
                with _log_to_stderr():
                    return await run_until_signal(temporal_worker.run(on_started=print_queue), signals)
            finally:
                sharing_task.cancel()
                await asyncio.wait([sharing_task])

    return signals.run(work())


class _ShortFormatter(logging.Formatter):
    """Formats an exception without its traceback, which has only frames of temporalio and of this package."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the name is that of `logging`
        return f"{type(ei[1]).__name__}: {ei[1]}"


def _log_to_stderr() -> contextlib.AbstractContextManager[None]:
    """Print the warnings of this package, and those of temporalio, such as why an activity has failed."""
    PACKAGE.addHandler(package_handler)  # `restored_logs` removes it
    handler = LogHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(JSONFormatter() if writes_json() else _ShortFormatter())
    return handling_log(logging.getLogger("temporalio"), handler)


async def run_until_signal(work: Coroutine[Any, Any, None], signals: Signals) -> ExitStatus:
    """Run a worker until a signal, and drain it.

    Raises:
        NotSentError: Temporal rejects the worker.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    signalled = asyncio.Event()
    stops = cancellations = 0

    def stop() -> None:
        nonlocal stops
        stops += 1
        if stops == 1:
            print_message("stopping: waiting for the calls in flight; a second signal abandons them")
        loop.call_soon_threadsafe(signalled.set)

    with signals.handled_by(stop):
        while not task.done():
            waiting = asyncio.ensure_future(signalled.wait())
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            signalled.clear()
            while cancellations < stops:
                cancellations += 1
                task.cancel()
                # If both signals have arrived together, the worker must still see two cancellations.
                await asyncio.sleep(0)
    if stops > 1:
        print_message("calls in flight were abandoned; their outcome is unknown", level=logging.WARNING)
        return ExitStatus.FAILED
    try:
        task.result()
    except asyncio.CancelledError:
        pass
    except RuntimeError as error:
        # For example, its namespace was deleted.
        raise NotSentError(f"Temporal has ended the worker: {reason_of(error)}") from None
    return ExitStatus.DONE


# --------------------------------------------------------------------------------- control of a task queue


def rate(
    value: Annotated[
        str | None,
        Parameter(
            name="RATE",
            help="Calls a second that all workers together may make; none for no limit; pause or resume. "
            "Default: print the limit.",
        ),
    ] = None,
    /,
    *,
    replace: Annotated[
        bool,
        Parameter(negative="", help="Replace a limit that another program has set, such as temporal."),
    ] = False,
    temporal_options: TemporalOptions = TemporalOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Print or set the rate limit of a task queue. It applies to all runs, and stays until it is changed.

    A change applies to all workers within a second.
    """
    is_limit = value not in {None, "pause", "resume"}
    limit = parse_rate("RATE", value) if value is not None and is_limit and value != "none" else None
    if replace and not is_limit:
        raise UsageError("--replace: requires RATE")
    connection = temporal_options.connection_without_payloads()
    file = open_stdout()

    async def run() -> TaskQueueRate:
        from plaid_relay_async.temporal import rates

        client, queue = await connection.open(), connection.task_queue
        with connection.naming_server():
            if is_limit:
                await rates.set_rate(client, queue, limit, replace=replace)
            elif value is not None:
                await (rates.pause if value == "pause" else rates.resume)(client, queue)
            return await rates.read_rate(client, queue)

    write_all(file, _describe_rate(signals.run(run())).encode())
    return ExitStatus.DONE


def _describe_rate(rate: TaskQueueRate) -> str:
    """Return one line for each fact about the limit of a task queue."""
    limits = {
        "limit": rate.allowed,
        "set by another program": rate.foreign,
        "after a 429": rate.adaptive,
        "at the server": rate.setting,
    }
    lines = [
        f"{name + ':':24}{'none' if limit is None else f'{limit:g}/s'}\n" for name, limit in limits.items()
    ]
    paused = f"until {rate.paused_until:%Y-%m-%dT%H:%M:%SZ}" if rate.paused_until else "until resume"
    return "".join(lines) + f"{'paused:':24}{paused if rate.is_paused else 'no'}\n"


def cancel(
    name: RunName,
    /,
    *,
    existing_journal: ExistingJournal,
    temporal_options: TemporalOptions = TemporalOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Take the queued creations of a run off its task queue.

    Calls that a worker has begun are completed. To resume the run, repeat its bulk command.

    If a command follows the run, stop it first, because it would add the calls again.
    """
    journal = existing_journal.build_journal(name)
    connection = temporal_options.connection(journal, existing_journal.key_file)

    async def query(journal: Journal) -> None:
        queue, _ = await _connect(connection, journal)
        print_message(f"cancelled: {await queue.cancel():,}")

    return run_query(journal, query) or ExitStatus.DONE
