"""What docs/temporal.md tells an operator to do, with the command: control a run, and recover from a failure."""

from __future__ import annotations

import asyncio
import signal

import pytest
from cryptography.fernet import Fernet
from journal_support import KEY
from processes import read_until, wait_until
from support import CREATE, REMOVE
from temporal_command import lines_of, stop, table_of, tokens_of
from temporalio.client import Client

from plaid_relay_async.simulator import Fault

INVALID = {"status": 400, "body": {"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}}


def ledger_of(simulator):
    """Return the token of each partner that isn't revoked."""
    entries = [entry for entry in simulator.ledger if not entry["removed"]]
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in entries}


# ---------------------------------------------------------------------------------------- control a run


def test_pause_and_resume(simulator, bulk, run, start_worker, task_queue):
    """A run makes no call while its task queue is paused, which `status` shows, and all after it is resumed."""
    assert run("rate", "pause", "--task-queue", task_queue).status == 0
    assert bulk(5, "--detach").status == 0
    start_worker()
    paused = run("status", "nov")
    assert (paused.status, table_of(paused.out)["not_attempted"]) == (1, "5")
    assert not simulator.requests
    assert run("rate", "resume", "--task-queue", task_queue).status == 0
    assert bulk(5).status == 0
    assert table_of(run("status", "nov").out)["created"] == "5"


RETRIES = pytest.mark.parametrize(
    ("fault", "option", "status"),
    [(INVALID, "--retry-failed", 1), ({"close": True, "when": "after"}, "--retry-unknown", 3)],
    ids=["failed", "unknown"],
)


@RETRIES
def test_retry(simulator, bulk, start_worker, fault, option, status):
    """What failed or is unknown is created again by the same command only with an option."""
    simulator.fail(Fault(path=CREATE, secondary_client_id="p1", times=1, **fault))
    start_worker()
    assert bulk(3).status == status
    assert bulk(3).status == status
    assert len(simulator.requests) == 3
    assert bulk(3, option).status == 0
    assert bulk(3).status == 0
    assert len(simulator.requests) == 4


@RETRIES
def test_a_retry_that_is_left_to_the_workers(simulator, bulk, start_worker, fault, option, status):
    """It is followed without the option, with which what it has left failed or unknown is retried once more."""
    simulator.fail(Fault(path=CREATE, secondary_client_id="p1", times=2, **fault))
    worker = start_worker()
    assert bulk(3).status == status
    assert stop(worker)[0] == 0
    assert table_of(bulk(3, option, "--detach").err)["started"] == "1"
    start_worker()
    assert bulk(3).status == status
    assert len(simulator.requests) == 4
    assert bulk(3, option).status == 0
    assert len(simulator.requests) == 5


def test_an_error_that_all_partners_share(simulator, bulk, run, start_worker):
    """It stops a command that follows the run, but not the workers of a detached one."""
    simulator.fail(Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS"}))
    start_worker("--concurrency", 1)
    assert bulk(10, "--concurrency", 1).status == 1
    assert len(simulator.requests) == 3
    assert bulk(10, "--detach").status == 0
    wait_until(lambda: len(simulator.requests) == 13)
    wait_until(lambda: table_of(run("status", "nov").out)["failed"] == "10")


def test_a_call_that_is_queued_again(
    simulator, bulk_arguments, start, start_worker, temporal_server, task_queue
):
    """The command says why a call is still queued, and a worker makes it later."""
    process = start(*bulk_arguments(1))

    async def terminate():
        client = await Client.connect(temporal_server.address)

        async def list_activities():
            return [each async for each in client.list_activities(f"TaskQueue = '{task_queue}'")]

        (activity,) = await read_until(list_activities)
        await client.get_activity_handle(activity.activity_id).terminate()

    asyncio.run(terminate())
    lines = iter(process.stderr.readline, "")
    assert any(
        "a worker didn't make a call, which is queued again: TerminatedError" in line for line in lines
    )
    start_worker()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, table_of(err)["created"]) == (0, "1")


def test_stop_and_resume(simulator, bulk, run, bulk_arguments, start, start_worker, task_queue, tmp_path):
    """Ctrl-C takes the calls off the queue, so that `cancel` finds none, and the same command resumes the run."""
    simulator.fail(Fault(path=CREATE, latency=2.0))
    start_worker("--concurrency", 2)
    process = start(*bulk_arguments(10, "--output", tmp_path / "first.jsonl"))
    wait_until(lambda: len(simulator.requests) == 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    counts = table_of(err)
    assert (process.returncode, counts["created"], counts["not_attempted"]) == (1, "2", "8"), err
    assert "cancelled: 0\n" in run("cancel", "nov", "--task-queue", task_queue).err
    assert len(simulator.ledger) == 2
    simulator.clear_faults()
    assert bulk(10, "--output", tmp_path / "second.jsonl").status == 0
    assert tokens_of(lines_of(tmp_path / "second.jsonl")) == ledger_of(simulator)
    assert len(simulator.ledger) == 10


def test_stop_without_waiting(simulator, run, bulk_arguments, start, start_worker, tmp_path):
    """After a second Ctrl-C, the calls that a worker has begun are unknown; the journal will have their outcomes."""
    simulator.fail(Fault(path=CREATE, latency=5.0))
    worker = start_worker()
    process = start(*bulk_arguments(2, "--output", tmp_path / "out.jsonl"))
    wait_until(lambda: len(simulator.requests) == 2)
    for expected in ("stopping", "abandoning"):
        process.send_signal(signal.SIGINT)
        while expected not in process.stderr.readline():
            assert process.poll() is None
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert {line["outcome"] for line in lines_of(tmp_path / "out.jsonl")} == {"unknown"}
    assert stop(worker)[0] == 0
    run("export", "nov", "--output", tmp_path / "export.jsonl")
    assert tokens_of(lines_of(tmp_path / "export.jsonl")) == ledger_of(simulator)
    assert len(simulator.ledger) == 2


def test_stop_a_revocation(simulator, bulk, run, start, start_worker, task_queue):
    """Ctrl-C takes the removals off the queue, and the same command resumes the revocation."""
    worker = start_worker()
    assert bulk(3).status == 0
    assert stop(worker)[0] == 0
    revoke = ["revoke", "nov", "--yes", "--task-queue", task_queue]
    process = start(*revoke)
    assert "0 of 3 done" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, table_of(err)["not_attempted"]) == (1, "3"), err
    start_worker()
    assert len(ledger_of(simulator)) == 3
    assert run(*revoke).status == 0
    assert ledger_of(simulator) == {}
    assert [request.path for request in simulator.requests].count(REMOVE) == 3


def test_forget(simulator, bulk, run, start_worker):
    """`forget` is refused while a worker has the journal of the run open, and possible once it is stopped."""
    worker = start_worker()
    assert bulk(2).status == 0
    refused = run("forget", "nov", "--yes")
    assert (refused.status, "a process is working on the run 'nov'" in refused.err) == (1, True)
    assert stop(worker)[0] == 0
    assert "deleted: 2" in run("forget", "nov", "--yes").err


# ---------------------------------------------------------------------------------------------- recover


@pytest.mark.slow
def test_the_server_is_killed_and_started_again(
    simulator, bulk, run, bulk_arguments, start, start_worker, temporal_server, task_queue
):
    """With its database, the run continues. Without it, the steps are: rate, Ctrl-C, and the same command."""
    simulator.fail(Fault(path=CREATE, latency=0.5))
    start_worker("--concurrency", 2)
    following = start(*bulk_arguments(30, "--rate", 100))
    wait_until(lambda: len(simulator.ledger) >= 4)
    asyncio.run(temporal_server.kill())
    asyncio.run(temporal_server.start())
    created = len(simulator.ledger)
    wait_until(lambda: len(simulator.ledger) >= created + 4)

    asyncio.run(temporal_server.kill())
    for path in temporal_server.database_files():
        path.unlink()
    asyncio.run(temporal_server.start())
    assert "limit:                  none\n" in run("rate", "--task-queue", task_queue).out
    assert run("rate", "100", "--task-queue", task_queue).status == 0
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60)
    assert bulk(30).status == 0
    assert len(simulator.ledger) == len(ledger_of(simulator)) == 30


def test_the_key_is_changed(simulator, bulk, run, start_worker, task_queue, tmp_path, monkeypatch):
    """The page's four steps: calls that are queued with each order of the keys are made, and all tokens remain."""
    new = Fernet.generate_key().decode()

    def restart(keys, worker=None):
        if worker is not None:
            assert stop(worker)[0] == 0
        monkeypatch.setenv("PLAID_RELAY_KEY", keys)
        return start_worker()

    worker = restart(KEY)
    assert bulk(1).status == 0
    assert stop(worker)[0] == 0
    assert bulk(2, "--detach").status == 0
    worker = restart(f"{KEY},{new}")
    wait_until(lambda: len(simulator.ledger) == 2)
    # A process that isn't restarted yet has the other order.
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{KEY}")
    assert bulk(3).status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{KEY},{new}")
    assert bulk(4).status == 0
    worker = restart(f"{new},{KEY}", worker)
    assert bulk(5).status == 0
    assert "re-encrypted: 4\n" in run("rotate").err  # the fifth token is encrypted with the new key already
    worker = restart(new, worker)
    assert bulk(6, "--output", tmp_path / "out.jsonl").status == 0
    assert tokens_of(lines_of(tmp_path / "out.jsonl")) == ledger_of(simulator)
    assert len(simulator.ledger) == 6
    assert run("revoke", "nov", "--yes", "--task-queue", task_queue).status == 0
    assert ledger_of(simulator) == {}
    assert stop(worker)[0] == 0
