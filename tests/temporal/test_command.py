"""The command with a Temporal server: runs, workers, and the control of a task queue."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from journal_support import KEY
from processes import running_process, wait_until
from support import CREATE, max_in_window
from temporal_command import COMMAND, REPORT, lines_of, stop, table_of, tokens_of
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import ActivityFailureError, Client

from plaid_relay_async.simulator import Fault, Limit
from plaid_relay_async.temporal import data_converter


def test_a_run_as_a_local_one(simulator, bulk, run, start_worker, task_queue, tmp_path):
    """A run on Temporal has the output, the table and the exit status of a local one, and its journal."""
    simulator.fail(
        Fault(path=CREATE, secondary_client_id="p3", status=400, body={"error_code": "INVALID_FIELD"})
    )
    simulator.fail(Fault(path=CREATE, secondary_client_id="p5", close=True, when="after"))
    workers = [start_worker(), start_worker()]

    result = bulk(20, "--output", tmp_path / "out.jsonl")
    assert result.status == 3, result.err
    expected = {"created": "18", "failed": "1", "unknown": "1", "not_attempted": "0"}
    assert table_of(result.err) | expected == table_of(result.err)
    lines = lines_of(tmp_path / "out.jsonl")
    ledger = {entry["secondary_client_id"]: entry["relay_token"] for entry in simulator.ledger}
    lost = ledger.pop("p5")
    assert tokens_of(lines) == ledger | {"p3": None, "p5": None}
    assert lost

    status = run("status", "nov")
    assert status.status == 3
    assert table_of(status.out) | {"created": "18", "failed": "1", "unknown": "1"} == table_of(status.out)
    assert "unknown: p5" in status.out
    assert run("export", "nov", "--output", tmp_path / "export.jsonl").status == 0
    assert tokens_of(lines_of(tmp_path / "export.jsonl")) == tokens_of(lines)

    repeated = bulk(20, "--output", tmp_path / "again.jsonl")
    assert repeated.status == 3
    assert tokens_of(lines_of(tmp_path / "again.jsonl")) == tokens_of(lines)
    assert len(simulator.ledger) == 19

    revoked = run(
        "revoke", "nov", "--yes", "--task-queue", task_queue, "--output", tmp_path / "revoked.jsonl"
    )
    assert revoked.status == 3  # the outcome of p5 is still unknown
    assert [line["outcome"] for line in lines_of(tmp_path / "revoked.jsonl")] == ["removed"] * 18
    assert [stop(worker)[0] for worker in workers] == [0, 0]


def test_a_run_that_is_left_to_the_workers(simulator, bulk, run, start_worker, task_queue, tmp_path):
    """`--detach` submits a run without waiting, and may be repeated; a later command follows the run."""
    first = bulk(30, "--detach")
    assert (first.status, first.out) == (0, ""), first.err
    assert table_of(first.err) | {"started": "30", "pending": "0", "recorded": "0"} == table_of(first.err)
    assert "repeat the command without --detach" in first.err
    second = bulk(30, "--detach", "--concurrency", 3)
    assert table_of(second.err) | {"started": "0", "pending": "30", "recorded": "0"} == table_of(second.err)
    assert not simulator.requests

    worker = start_worker("--concurrency", 5)
    result = bulk(30, "--output", tmp_path / "out.csv")
    assert result.status == 0, result.err
    assert len(simulator.ledger) == 30
    third = bulk(30, "--detach")
    assert table_of(third.err) | {"started": "0", "pending": "0", "recorded": "30"} == table_of(third.err)
    assert stop(worker)[0] == 0


def test_detach_with_options_without_effect(simulator, bulk, tmp_path):
    """`--detach` writes no outcomes, and reads the whole input first."""
    for option in (["--output", tmp_path / "out.csv"], ["--stream"]):
        result = bulk(1, "--detach", *option)
        assert result.status == 2
        assert "--detach: can't be used with --output or --stream" in result.err


def test_cancel(simulator, bulk, run, start_worker, task_queue):
    """`cancel` takes the queued calls off the queue; the run can be resumed."""
    assert bulk(10, "--detach").status == 0
    result = run("cancel", "nov", "--task-queue", task_queue)
    assert (result.status, "cancelled: 10" in result.err) == (0, True), result.err
    assert run("cancel", "none", "--task-queue", task_queue).status == 1
    worker = start_worker()
    assert bulk(10).status == 0
    assert len(simulator.ledger) == 10
    assert stop(worker)[0] == 0


def test_cancel_and_revoke(simulator, bulk, run, start_worker, task_queue):
    """`revoke` is refused while calls are queued, or warns if it can't know; then the way out is `cancel`."""
    worker = start_worker()
    assert bulk(2).status == 0
    assert run("revoke", "nov", "--yes", "--partner", "p0", "--task-queue", task_queue).status == 0
    assert stop(worker)[0] == 0
    assert table_of(bulk(10, "--detach").err)["started"] == "9"  # p0 is created again
    revoke = ("revoke", "nov", "--yes")
    refused = run(*revoke, "--task-queue", task_queue)
    assert (refused.status, refused.out) == (1, "")
    assert "the run 'nov' is in progress; creations on the task queue: 9" in refused.err
    assert "Cancel the run with plaid-relay cancel" in refused.err
    assert sorted(entry["removed"] for entry in simulator.ledger) == [False, True]
    unchecked = run(*revoke)
    assert (unchecked.status, table_of(unchecked.err)["removed"]) == (0, "1")
    assert "pairs without an outcome, which may still get a token: 8\n" in unchecked.err  # p0 is revoked
    assert "cancel it, and repeat this command with --task-queue" in unchecked.err

    assert "cancelled: 9\n" in run("cancel", "nov", "--task-queue", task_queue).err
    revoked = run(*revoke, "--task-queue", task_queue)
    assert (revoked.status, revoked.out) == (0, ""), revoked.err
    worker = start_worker()
    assert bulk(10).status == 0
    assert table_of(run(*revoke, "--task-queue", task_queue).err)["removed"] == "10"
    assert stop(worker)[0] == 0
    assert [entry["removed"] for entry in simulator.ledger] == [True] * 12


def test_cancel_and_revoke_a_run_that_has_reused_tokens(
    simulator, bulk, bulk_arguments, run, start_worker, task_queue
):
    """While it may create tokens of its own, `revoke` is refused; `cancel` takes them off the queue."""
    worker = start_worker()
    first = ["oct" if each == "nov" else each for each in bulk_arguments(2)]
    assert run(*first).status == bulk(2).status == 0
    assert stop(worker)[0] == 0
    assert table_of(bulk(2, "--on-existing", "create", "--detach").err)["started"] == "2"
    revoke = ("revoke", "nov", "--yes", "--task-queue", task_queue)
    refused = run(*revoke)
    assert (refused.status, refused.out) == (1, "")
    assert "the run 'nov' is in progress; creations on the task queue: 2" in refused.err
    assert "cancelled: 2\n" in run("cancel", "nov", "--task-queue", task_queue).err
    assert run(*revoke).status == 0
    assert [entry["removed"] for entry in simulator.ledger] == [False] * 2


def test_a_worker_drains(simulator, bulk, start_worker):
    """At SIGTERM, a worker completes the calls in flight; a second signal abandons them."""
    simulator.fail(Fault(path=CREATE, latency=1.0))
    worker = start_worker("--log-format", "json", "--concurrency", 4)
    assert bulk(4, "--detach").status == 0
    wait_until(lambda: len(simulator.requests) == 4)
    status, err = stop(worker)
    assert status == 0
    messages = [json.loads(line)["message"] for line in err.splitlines()]
    assert "stopping: waiting for the calls in flight; a second signal abandons them" in messages
    assert bulk(4).status == 0
    assert len(simulator.ledger) == 4


def test_a_worker_abandons(simulator, bulk, start_worker):
    """A second signal abandons the calls in flight, which the exit status shows."""
    simulator.fail(Fault(path=CREATE, latency=100.0))
    worker = start_worker("--lease", "100")
    assert bulk(1, "--detach").status == 0
    wait_until(lambda: len(simulator.requests) == 1)
    worker.send_signal(signal.SIGTERM)
    assert "stopping" in worker.stderr.readline()
    status, err = stop(worker)
    assert status == 1
    assert "calls in flight were abandoned; their outcome is unknown\n" in err
    assert "Traceback" not in err


def test_a_worker_receives_two_signals_together(simulator, bulk, start_worker):
    """It abandons the calls in flight, as after a second signal that arrives later."""
    simulator.fail(Fault(path=CREATE, latency=100.0))
    worker = start_worker("--lease", "100")
    assert bulk(1, "--detach").status == 0
    wait_until(lambda: len(simulator.requests) == 1)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        worker.send_signal(number)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "calls in flight were abandoned; their outcome is unknown\n" in err


def test_a_worker_for_another_lender(simulator, bulk, start_worker, monkeypatch):
    """A worker with other credentials sends nothing, says why, and the run stops with that error."""
    with monkeypatch.context() as patch:
        patch.setenv("PLAID_CLIENT_ID", "other")
        worker = start_worker()
    result = bulk(1)
    assert result.status == 1
    assert not simulator.requests
    status, err = stop(worker)
    assert status == 0
    assert "the task is from another journal or for another lender than this worker's" in err
    assert "Traceback" not in err
    start_worker()
    assert bulk(1).status == 0


def test_a_worker_with_an_unexpected_error(simulator, start_worker, temporal_server, task_queue):
    """The worker prints its traceback, and runs on."""
    options = {"on_existing": "reuse", "retry_unknown": False, "retry_failed": False}
    task = {
        "version": 1,
        "request": json.dumps({"report_tokens": [REPORT], "secondary_client_id": "p"}),
        "digest": "n",
        "settings": {"run": ["a list, by mistake"], **options},
        "in_doubt": None,
    }

    async def make_call():
        client = await Client.connect(temporal_server.address, data_converter=data_converter(KEY))
        limit = timedelta(seconds=60)
        await client.execute_activity(
            "plaid_relay.create", task, id=task_queue, task_queue=task_queue, start_to_close_timeout=limit
        )

    worker = start_worker()
    with pytest.raises(ActivityFailureError):
        asyncio.run(make_call())
    status, err = stop(worker)
    assert (status, len(simulator.requests)) == (0, 0)
    assert "an activity raised an unexpected error\nTraceback (most recent call last):\n" in err
    assert "TypeError: unhashable type: 'list'" in err
    assert "ApplicationError: TypeError: unexpected error: TypeError" in err
    assert REPORT not in err


def test_an_unknown_namespace(simulator, bulk, run, task_queue):
    """A namespace that the server doesn't have is an error before anything is sent."""
    for result in (
        bulk(1, "--temporal-namespace", "none"),
        run("worker", "--task-queue", task_queue, "--temporal-namespace", "none"),
        run("rate", "--task-queue", task_queue, "--temporal-namespace", "none"),
    ):
        assert result.status == 1
        assert "can't use Temporal at" in result.err
        assert "Namespace none is not found" in result.err
    assert not simulator.requests


def test_a_journal_that_cannot_be_reached(simulator, bulk, run, task_queue, monkeypatch):
    """A journal that can't be used ends a worker immediately, and not with its first call."""
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", "postgresql://user@127.0.0.1:1/none")
    result = run("worker", "--task-queue", task_queue, "--lease", 2)
    assert result.status == 1
    assert "JournalError" in result.err


def test_no_key(simulator, bulk, run, task_queue, monkeypatch):
    """Without a key, tokens would be stored unencrypted at the Temporal server, which is an error."""
    monkeypatch.delenv("PLAID_RELAY_KEY")
    for result in (bulk(1), run("worker", "--task-queue", task_queue)):
        assert result.status == 2
        assert "PLAID_RELAY_KEY" in result.err
    assert not simulator.requests


def test_a_namespace_without_the_search_attribute(simulator, bulk, start_worker, monkeypatch):
    """Without the search attribute, a run works as well, and a message says how to add it."""

    async def register():
        retention = Duration(seconds=86_400)
        request = RegisterNamespaceRequest(namespace="bare", workflow_execution_retention_period=retention)
        client = await Client.connect(os.environ["TEMPORAL_ADDRESS"])
        await client.workflow_service.register_namespace(request)

    asyncio.run(register())
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "bare")
    # The server uses a new namespace some seconds later.
    wait_until(lambda: "is not found" not in bulk(1, "--detach").err)
    worker = start_worker()
    result = bulk(3)
    assert (result.status, len(simulator.ledger)) == (0, 3), result.err
    assert "temporal operator search-attribute create --name PlaidRelayRun --type Keyword" in result.err
    assert stop(worker)[0] == 0


@pytest.fixture
def silent_server(simulator, monkeypatch):
    """A server in place of Temporal's that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_a_server_that_does_not_respond(silent_server, run, task_queue):
    """After ten seconds without a response from the server, the command ends with status 1."""
    result = run("rate", "--task-queue", task_queue)
    assert result.status == 1
    assert "no response within 10 seconds" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", [["rate"], ["cancel", "nov"], ["worker"]], ids=lambda command: command[0])
def test_a_signal_while_connecting(silent_server, task_queue, command, number):
    """A signal ends a command that waits for the server, with status 1."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running_process([*COMMAND, *command, "--task-queue", task_queue], **pipes) as process:
        connection, _ = silent_server.accept()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        connection.close()
    assert (process.returncode, out) == (1, "")
    assert err.endswith("plaid-relay: interrupted\n")


def test_the_end_of_the_process(simulator, task_queue):
    """The process ends without waiting for threads of Temporal's core, and calls functions of `atexit`."""
    code = (
        "import atexit, sys; from plaid_relay_async.cli import main; atexit.register(print, 'at exit'); "
        "main(); print('not ended')"
    )
    command = [sys.executable, "-Ic", code, "rate", "--task-queue", task_queue]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("limit:")
    assert result.stdout.endswith("at exit\n")


def test_rate(simulator, bulk, run, start_worker, task_queue):
    """`rate` and `bulk --rate` set the limit of a task queue; `rate` shows it."""

    def facts(*args):
        result = run("rate", *args, "--task-queue", task_queue)
        assert result.status == 0, result.err
        return dict(line.split(":", 1) for line in result.out.replace(" ", "").splitlines())

    assert facts()["limit"] == "none"
    assert facts("20")["limit"] == "20/s"
    assert facts("pause")["paused"] == "untilresume"
    assert facts("resume")["paused"] == "no"
    assert bulk(1, "--detach", "--rate", 30).status == 0
    assert facts()["limit"] == "30/s"
    assert facts("none", "--replace")["limit"] == "none"
    invalid = bulk(1, "--rate", 0)
    assert (invalid.status, "--rate: must be a number of calls a second" in invalid.err) == (2, True)


# ------------------------------------------------------------------------------- limits of three processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "lower_rate", "seconds", "min_share"),
    # In so short a time, a second in which the machine is busy with something else counts more.
    [(20, 10, 11.0, 0.7), (50, 20, 30.0, 0.8)],
)
def test_three_workers_keep_a_rate(
    simulator, arrivals, bulk, run, start_worker, task_queue, rate, lower_rate, seconds, min_share
):
    """No ten seconds have more calls than are allowed, and most of the rate is used, also after it is changed.

    Every request that arrives at the simulator counts. None is declined there, so each is a call.
    """
    arrivals.latency = 0.1
    # There are more than are needed, because a partition of the task queue that is empty doesn't use its share.
    pairs = int((rate + lower_rate) * seconds) + 8 * rate
    assert bulk(pairs, "--detach", "--rate", rate).status == 0
    workers = [start_worker() for _ in range(3)]
    wait_until(lambda: arrivals.times)
    started_at = arrivals.times[0]
    wait_until(lambda: arrivals.times[-1] >= started_at + seconds)
    assert run("rate", lower_rate, "--task-queue", task_queue).status == 0
    changed_at = time.monotonic()
    wait_until(lambda: arrivals.times[-1] >= changed_at + seconds)
    assert run("rate", "none", "--task-queue", task_queue).status == 0
    wait_until(lambda: len(simulator.ledger) == pairs)

    limited = arrivals.between(started_at, changed_at + seconds)
    lower_limited = arrivals.between(changed_at, changed_at + seconds)
    assert max_in_window(limited, 10) <= 10 * rate
    assert max_in_window(lower_limited, 10) <= 10 * lower_rate
    assert len(arrivals.between(started_at, started_at + seconds)) >= min_share * rate * seconds
    assert len(lower_limited) >= min_share * lower_rate * seconds
    assert len(arrivals.times) == pairs
    assert [stop(worker)[0] for worker in workers] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("limits", [[Limit(CREATE, 1_000, 60.0)]])
def test_three_workers_adapt_to_an_unknown_limit(simulator, arrivals, bulk, start_worker, tmp_path):
    """With 1,000 a minute and no setting, less than 3 % of the requests after the first minute get a 429."""
    arrivals.latency = 0.1
    workers = [start_worker() for _ in range(3)]
    result = bulk(5_000, "--output", tmp_path / "out.csv")
    assert (result.status, len(simulator.ledger)) == (0, 5_000), result.err
    later = arrivals.between(arrivals.times[0] + 60, math.inf)
    statuses = [each.status for each in simulator.requests][-len(later) :]
    assert statuses.count(429) < 0.03 * len(later)
    assert statuses.count(200) >= 0.6 * 1_000 * (later[-1] - later[0]) / 60
    assert [stop(worker)[0] for worker in workers] == [0, 0, 0]
