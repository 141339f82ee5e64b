"""Signals: how each affects a command, in this process and in another one."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import ignoring_signals, running_process, unread_bytes, wait_until, waits_in_kernel
from support import CREATE

from plaid_relay_async.cli import _flush_streams
from plaid_relay_async.cli.signals import Signals, signals
from plaid_relay_async.gateway import KeyFile

REPORT = "assets-sandbox-1111"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]


def send(number):
    os.kill(os.getpid(), number)


# The class


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_the_event_loop(number):
    """Each signal raises KeyboardInterrupt until the command has ended, and is then ignored."""
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        send(number)
    assert signals.interrupted
    send(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_deferred_signal(number):
    """A deferred signal raises KeyboardInterrupt at the end of the block."""
    steps = []
    with Signals() as signals, pytest.raises(KeyboardInterrupt), signals.deferred():
        send(number)
        steps.append("completed")
    assert (steps, signals.interrupted) == (["completed"], True)


def test_an_ignored_keyboard_interrupt():
    """A coroutine isn't started if a signal was received before it, even if KeyboardInterrupt was ignored."""
    steps = []

    async def work():
        steps.append("started")

    with Signals() as signals:
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signals.run(work())
    assert steps == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_coroutine(number):
    """A signal cancels the running coroutine, and its cleanup completes."""
    steps = []

    async def work():
        try:
            send(number)
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signals.run(work())
    assert steps == ["cleaned up"]


def test_a_signal_that_another_thread_receives():
    """The event loop wakes up, although the signal interrupts another thread."""

    def receive():
        time.sleep(0.2)  # until the event loop waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    async def work():
        asyncio.get_running_loop().call_soon(threading.Thread(target=receive).start)
        await asyncio.Event().wait()

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signals.run(work())
    assert signals.interrupted


def test_a_command_outside_of_the_main_thread():
    """The command runs, and leaves signals to the program around it."""
    results = []

    def command():
        with Signals() as signals:
            results.append(signals.run(asyncio.sleep(0, "done")))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert results == ["done"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_wait_for_the_cleanup():
    """A second signal ends a cleanup that hangs."""

    async def work():
        try:
            send(signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            send(signal.SIGTERM)
            await asyncio.sleep(30)

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signals.run(work())


def test_a_third_signal_does_not_wait_for_the_end_of_all_tasks():
    """A third signal ends a cleanup that suppresses the second cancellation."""

    async def work():
        loop = asyncio.get_running_loop()
        loop.call_soon(send, signal.SIGINT)
        try:
            await asyncio.sleep(30)
        finally:
            loop.call_soon(send, signal.SIGINT)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            loop.call_soon(send, signal.SIGINT)
            try:
                await asyncio.sleep(30)
            finally:
                asyncio.get_running_loop()

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signals.run(work())


def test_signals_before_the_handler():
    """A signal just before `handled_by` is handled by it."""
    calls = []

    async def listen(signals):
        send(signal.SIGTERM)
        with signals.handled_by(lambda: calls.append("now")):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        send(signal.SIGTERM)  # once the outcome is known, signals are ignored
        return "outcome"

    with Signals() as signals:
        assert signals.run(listen(signals)) == "outcome"
        send(signal.SIGTERM)
    assert calls == ["now"]
    assert not signals.interrupted


def test_a_signal_after_the_coroutine():
    """Once a coroutine has ended, signals raise KeyboardInterrupt again."""
    with Signals() as signals:
        assert signals.run(asyncio.sleep(0, "result")) == "result"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGHUP)


@pytest.mark.parametrize(
    ("numbers", "requests"),
    [
        ([signal.SIGHUP, signal.SIGHUP], 1),
        ([signal.SIGTERM, signal.SIGHUP], 1),
        ([signal.SIGHUP, signal.SIGTERM], 1),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGINT], 2),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], 2),
    ],
)
def test_sighup_is_never_the_second_request(numbers, requests):
    """SIGHUP, which a terminal sends twice and systemd after SIGTERM, never abandons calls in flight."""
    calls = []

    async def listen(signals):
        with signals.handled_by(lambda: calls.append("now")):
            for number in numbers:
                send(number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    with Signals() as signals:
        signals.run(listen(signals))
    assert (len(calls), signals.stop_count) == (requests, requests)


def test_ignored_signals_stay_ignored():
    """SIGINT and SIGHUP stay ignored if they were ignored at the start; SIGTERM is always handled."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with Signals() as signals:
        send(signal.SIGINT)
        send(signal.SIGHUP)
        assert signals.stop_count == 0
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_sighup_that_requests_a_reload():
    """SIGHUP before the event loop runs requests a reload too; after `handled_by` it does nothing."""
    calls = []

    async def listen(signals):
        with signals.handled_by(lambda: calls.append("stop"), lambda: calls.append("reload")):
            await asyncio.sleep(0)
            send(signal.SIGHUP)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        send(signal.SIGHUP)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        signals.reload_on_sighup()
        send(signal.SIGHUP)
        signals.run(listen(signals))
    assert (calls, signals.stop_count) == (["reload", "reload"], 0)


# The command


INTERRUPTED_IMPORT = """
import signal, sys, weakref
from plaid_relay_async.cli import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "plaid_relay_async.cli.app":
            referent = {1}
            reference = weakref.ref(referent, lambda _: signal.raise_signal(int(sys.argv.pop())))
            del referent

sys.meta_path.insert(0, Finder())
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_an_import(plaid, partners, number):
    """A signal ends the command even in a weak reference's callback, where Python ignores exceptions."""
    args = ["bulk", partners(3), "--report-token", REPORT, int(number)]
    with ignoring_signals():
        command = [sys.executable, "-Ic", INTERRUPTED_IMPORT, *map(str, args)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (1, "", "plaid-relay: interrupted\n")
    assert not plaid.requests


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [("get", 1, "interrupted"), ("remove", 3, "the outcome of the removal is unknown")],
)
def test_a_single_call_with_sigint_ignored(start, spawn, command, status, text):
    """SIGTERM ends a single call even if SIGINT is ignored, as in the background of a script."""
    plaid = start(latency=60.0)
    with ignoring_signals(signal.SIGINT, signal.SIGHUP):
        process = spawn(command, "credit-relay-sandbox-1")
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert (process.returncode, text in errors) == (status, True)


def test_a_terminal_that_closes(start, partners, tmp_path):
    """If its terminal closes, a batch stops sending, drains, and writes an outcome for each row."""
    plaid = start(latency=0.3)
    out = tmp_path / "out.jsonl"
    args = ["bulk", str(partners(100)), "--report-token", REPORT, "--output", str(out), "--concurrency", "5"]
    screen, terminal = pty.openpty()
    # The first terminal that a session leader opens becomes its controlling terminal; closing it sends SIGHUP.
    shell = ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(terminal)]
    command = [*shell, *COMMAND, *args]
    with contextlib.ExitStack() as stack:
        with ignoring_signals():
            process = stack.enter_context(
                running_process(command, stdout=terminal, stderr=terminal, start_new_session=True)
            )
        os.close(terminal)
        wait_until(lambda: plaid.counts[CREATE] >= 5)
        os.close(screen)
        assert process.wait() == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    tokens = {line["relay_token"] for line in lines if line["outcome"] == "created"}
    assert tokens == {entry["relay_token"] for entry in plaid.ledger}
    assert len(lines) == 100
    assert {line["outcome"] for line in lines} == {"created", "not_attempted"}


def test_nohup(start, spawn, partners):
    """SIGHUP doesn't stop a batch that was started with SIGHUP ignored."""
    plaid = start(latency=0.1)
    with ignoring_signals(signal.SIGHUP):
        process = spawn("bulk", partners(20), "--report-token", REPORT, "--concurrency", 5)
    wait_until(lambda: plaid.counts[CREATE] >= 5)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate()
    assert (process.returncode, out.count('"created"')) == (0, 20)


@pytest.fixture
def unresponsive_server():
    """Run a server that never responds; return its address and its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def accept():
            try:
                while True:
                    connections.append(server.accept()[0])
            except OSError:  # it was closed
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in connections:
            each.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_journal_that_does_not_open(plaid, spawn, partners, unresponsive_server, number):
    """A signal ends a batch that waits for its journal; nothing was sent."""
    address, connections = unresponsive_server
    journal = f"postgresql://user@{address}/database"
    args = ("bulk", partners(3), "--report-token", REPORT, "--journal", journal, "--run", "r")
    with ignoring_signals():
        process = spawn(*args)
    wait_until(lambda: connections)
    process.send_signal(number)
    out, errors = process.communicate()
    assert (process.returncode, out, "interrupted" in errors) == (1, "", True)
    assert not plaid.requests


@pytest.mark.parametrize("args", [["refresh"], ["remove"], ["remove", "--journal"]])
def test_a_single_call_that_was_not_sent(plaid, spawn, monkeypatch, unresponsive_server, args):
    """A signal during the TLS handshake, or while the journal opens, leaves no unknown outcome."""
    address, connections = unresponsive_server
    if "--journal" in args:
        args = [*args, f"postgresql://user@{address}/database"]
    else:
        monkeypatch.setenv("PLAID_BASE_URL", f"https://{address}")
    with ignoring_signals():
        process = spawn(*args, "credit-relay-sandbox-1")
    wait_until(lambda: connections)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate()
    assert (process.returncode, out, errors.splitlines()[-1]) == (1, "", "plaid-relay: interrupted")
    assert not plaid.requests


def test_a_reader_that_has_stopped_reading(plaid, spawn, tmp_path):
    """A signal ends a command that waits for its reader, even if some text wasn't written."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("ann", partners=[f"partner-{number:05}" for number in range(10_000)])
    with ignoring_signals():
        process = spawn("gateway", "keys", "list", "--keys", file.path)
    wait_until(lambda: unread_bytes(process.stdout) >= 65536)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert process.stderr.read() == "plaid-relay: interrupted\n"


@pytest.fixture
def full_pipe():
    """Create a full pipe without a reader, and return its writing end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def test_a_reader_that_never_reads(plaid, spawn, tmp_path, full_pipe):
    """A signal ends, with status 1, a command that waits for a reader of its last text."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("ann")
    with ignoring_signals():
        process = spawn("gateway", "keys", "list", "--keys", file.path, stdout=full_pipe)
    wait_until(waits_in_kernel(process.pid, "pipe_write"))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1


def test_the_last_text_waits_for_its_reader(full_pipe, signal_when, monkeypatch):
    """A signal during the last flush changes the exit status to 1, and discards the text."""
    with os.fdopen(os.dup(full_pipe), "w") as file, signals:
        monkeypatch.setattr(sys, "stdout", file)
        file.write("text")
        signal_when(waits_in_kernel(os.getpid(), "pipe_write"))
        assert _flush_streams(0) == 1


def test_a_key_that_waits_for_its_reader(plaid, spawn, tmp_path, full_pipe):
    """A signal while a new key waits to be printed leaves no key that was never shown."""
    file = KeyFile(tmp_path / "keys.json")
    with ignoring_signals():
        process = spawn("gateway", "keys", "add", "ann", "--keys", file.path, stdout=full_pipe)
    wait_until(waits_in_kernel(process.pid, "pipe_write"))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert file.read() == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_pipe_without_a_reader(plaid, spawn, partners, tmp_path, number):
    """A signal ends a batch that waits for a reader of its output pipe; nothing was sent."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ignoring_signals():
        process = spawn("bulk", partners(3), "--report-token", REPORT, "--output", pipe, "--append")
    wait_until(waits_in_kernel(process.pid, "wait_for_partner"))
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (1, "plaid-relay: interrupted\n")
    assert not plaid.requests
    assert pipe.is_fifo()
