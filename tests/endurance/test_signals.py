"""Each signal to each command, for each set of ignored signals; and the gateway's reloads under load."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.fernet import Fernet
from processes import SIGNALS, ignoring_signals, running_process_async, unread_bytes, wait_until

from plaid_relay_async import RelayClient, RelayCreateRequest
from plaid_relay_async.cli.app import app
from plaid_relay_async.cli.gateway import keys
from plaid_relay_async.cli.webhooks import webhooks
from plaid_relay_async.gateway import KeyFile
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.testing import SimulatorThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from plaid_relay_async import BatchResult, RelayCreateResponse

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parent.parent.parent / "docs/command.md").read_text(encoding="utf-8")
REPORT = "assets-sandbox-1111"
ROWS = 40
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
CASES = [
    (number, subset)
    for count in range(len(SIGNALS) + 1)
    for subset in itertools.combinations(SIGNALS, count)
    for number in SIGNALS
]


def documented_effects() -> dict[str, dict[int, str]]:
    """Return the effect of each signal on each command, as documented in docs/command.md."""
    table = re.search(r"^\| commands \|(.*)\|\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    names = [cell.strip() for cell in table[1].split("|")[1:]]
    by_command = {}
    for line in table[2].splitlines():
        first, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        by_signal = {getattr(signal, name): effect for name, effect in zip(names, cells, strict=True)}
        for command in re.findall(r"`([a-z ]+)`", first):
            by_command[command] = by_signal
    return by_command


DOCUMENTED = documented_effects()
TEMPORAL = {"worker", "rate", "cancel"}  # they need an extra, so tests/temporal has their signals


def test_every_command_is_in_the_table():
    """docs/command.md documents the effect of signals on each command."""
    commands = {name for name in app if name.isalpha()} - {"webhooks"}
    commands |= {f"gateway keys {name}" for name in keys if name.isalpha()}
    commands |= {f"webhooks {name}" for name in webhooks if name.isalpha()}
    assert set(DOCUMENTED) == commands


# ------------------------------------------------------------------------------------------ one command


def _arguments_of_queries(address: str) -> dict[str, list[str]]:
    """Return the arguments of each command that waits for a server that doesn't respond."""
    url = f"postgresql://user@{address}/database"
    journal, store = ["--journal", url], ["--store", url]
    return {
        "runs": journal,
        "rotate": journal,
        "status": ["r", *journal],
        "export": ["r", *journal],
        "forget": ["r", "--yes", *journal],
        "webhooks stored": store,
        "webhooks rotate": store,
        "webhooks redeliver": ["id", *store],
        "webhooks discard": ["id", "--yes", *store],
        "webhooks send": [f"http://{address}/"],
    }


class Stage:
    """A simulator, a database server and files that let each command wait; `start_command` starts one."""

    def __init__(
        self,
        plaid: Simulator,
        folder: Path,
        database: socket.socket,
        connections: list[socket.socket],
        stack: contextlib.ExitStack,
    ) -> None:
        self.stack = stack
        self.plaid = plaid
        self.folder = folder
        self.database = database
        self.connections = connections
        self.numbers = itertools.count()

    def prepare(self) -> None:
        """Create the inputs: partners, a file with relay tokens, and a journal."""
        (self.folder / "partners.csv").write_text("".join(f"p{number}\n" for number in range(ROWS)))
        args = ["bulk", self.folder / "partners.csv", "--report-token", REPORT, "--journal"]
        args += [self.folder / "journal.db", "--run", "r", "--output", self.folder / "tokens.jsonl"]
        subprocess.run([*COMMAND, *map(str, args)], check=True, capture_output=True)

    def start_command(self, command: str) -> tuple[subprocess.Popen[str], Callable[[], object]]:
        """Start a command; return its process and a function that returns whether it waits."""
        self.plaid.clear_faults()
        number = next(self.numbers)
        partners, tokens = self.folder / "partners.csv", self.folder / "tokens.jsonl"
        requests, connections = len(self.plaid.requests), len(self.connections)
        is_in_flight = lambda: len(self.plaid.requests) > requests  # noqa: E731
        is_connected = lambda: len(self.connections) > connections  # noqa: E731
        address = f"127.0.0.1:{self.database.getsockname()[1]}"
        if command in (queries := _arguments_of_queries(address)):
            return self._start(command, *queries[command]), is_connected
        match command:
            case "bulk":
                args = [partners, "--report-token", REPORT, "--concurrency", 2]
            case "fetch":
                args = [tokens, "--dir", self.folder / f"reports{number}", "--concurrency", 2]
            case "revoke":
                copy = self.folder / f"journal{number}.db"
                shutil.copy(self.folder / "journal.db", copy)
                args = ["r", "--journal", copy, "--yes", "--concurrency", 2]
            case "create":
                args = ["--report-token", REPORT, "--partner", "ann"]
            case "remove" | "get" | "refresh":
                args = ["credit-relay-sandbox-1"]
            case "pdf":
                args = ["credit-relay-sandbox-1", "--output", "-"]
            case "gateway keys add" | "gateway keys revoke" | "gateway keys list":
                return self._start_keys(command, self.folder / f"keys{number}")
            case "webhooks list":
                args = []
            case "webhooks recover":
                args = ["--store", self.folder / f"store{number}.db"]
            case _:  # a server, or the demo
                process = self._start(command)
                return process, (process.stderr if command == "webhooks listen" else process.stdout).readline
        # The calls of commands that drain take long enough to be in flight; the others take longer than the test.
        self.plaid.fail(Fault(latency=1.0 if command in {"bulk", "fetch", "revoke", "create"} else 60.0))
        return self._start(command, *args), is_in_flight

    def _start(self, *args: object) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*COMMAND, *(each for word in args for each in str(word).split(" "))]
        return subprocess.Popen(command, text=True, cwd=self.folder, **pipes)

    def _start_keys(self, command: str, folder: Path) -> tuple[subprocess.Popen[str], Callable[[], object]]:
        folder.mkdir()
        path = folder / "keys.json"
        if command.endswith("list"):  # it waits for the reader of its output
            KeyFile(path).add("ann", partners=[f"partner-{number:05}" for number in range(10_000)])
            process = self._start(command, "--keys", path)
            return process, lambda: unread_bytes(process.stdout) >= 65536
        # The others wait for the lock of the file, which is held until the end of the module.
        file = self.stack.enter_context((folder / ".keys.json.lock").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        process = self._start(command, "ann", "--keys", path)
        return process, lambda: re.search(rf"-> .* {process.pid} ", Path("/proc/locks").read_text())


@contextlib.contextmanager
def accepted_connections(server: socket.socket) -> Iterator[list[socket.socket]]:
    """Accept connections, and never respond on them."""
    connections: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connections.append(server.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield connections
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in connections:
            each.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    """A simulator, a database server that never responds, and an environment that selects them."""
    folder = tmp_path_factory.mktemp("signals")
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith("PLAID_")]:
            patch.delenv(name)
        patch.setenv("PLAID_CLIENT_ID", "owner")
        patch.setenv("PLAID_SECRET", "secret")
        patch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        plaid = stack.enter_context(SimulatorThread(reports=[REPORT], generation_delay=0.0))
        patch.setenv("PLAID_BASE_URL", plaid.url)
        database = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        connections = stack.enter_context(accepted_connections(database))
        prepared = Stage(plaid, folder, database, connections, stack)
        prepared.prepare()
        yield prepared


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [name for name in DOCUMENTED if name not in TEMPORAL])
def test_signals_to_a_command(stage, size, command):
    """A signal ends a command with the documented status, unless it was ignored and isn't SIGTERM."""
    first = 7 * list(DOCUMENTED).index(command)  # so that the samples of all commands cover every case
    for offset in range(size(1, len(CASES))):
        number, at_start = CASES[(first + offset) % len(CASES)]
        effect = DOCUMENTED[command][number]
        with ignoring_signals(*at_start):
            process, is_waiting = stage.start_command(command)
        case = f"{signal.Signals(number).name}, ignored: {[each.name for each in at_start]}"
        with process:
            try:
                wait_until(is_waiting)
                process.send_signal(number)
                if effect == "reloads":
                    line = process.stderr.readline()
                    while not line.endswith("reloaded\n"):
                        line = process.stderr.readline()
                if effect == "reloads" or (number in at_start and number != signal.SIGTERM):
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.1)
                    effect = DOCUMENTED[command][signal.SIGTERM]
                    process.send_signal(signal.SIGTERM)
                if command != "gateway keys list":  # whose output isn't read
                    process.communicate()
                assert (process.wait(), case) == (int(effect), case)
            finally:
                process.kill()


# ---------------------------------------------------------------------------------- reloads under load


@pytest.mark.timeout(600)
async def test_reloads_under_load(tmp_path, size, monkeypatch):
    """A gateway that is reloaded repeatedly, with new certificates and audit files, fails no call."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    key = await asyncio.to_thread(KeyFile(tmp_path / "keys.json").add, "ann")
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "secret")
    certificate, audit = tmp_path / "certificate.pem", tmp_path / "audit.jsonl"

    def write_certificate() -> None:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(certificate)

    async with Simulator(reports=[REPORT], latency=0.02) as plaid, contextlib.AsyncExitStack() as stack:
        write_certificate()
        args = ["--upstream", plaid.url, "--keys", tmp_path / "keys.json", "--audit", audit]
        args += ["--tls-certificate", certificate, "--tls-key", tmp_path / "key.pem"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = await stack.enter_async_context(
            running_process_async(*COMMAND, "gateway", *map(str, args), **pipes)
        )
        url = (await process.stdout.readline()).decode().split()[-1]

        def client() -> RelayClient:
            return RelayClient(base_url=url, gateway_key=key, ssl=context)

        done = asyncio.Event()

        async def requests() -> AsyncIterator[RelayCreateRequest]:
            for number in itertools.count():
                if done.is_set():
                    return
                yield RelayCreateRequest([REPORT], f"partner-{number}")

        async def load() -> BatchResult[RelayCreateRequest, RelayCreateResponse]:
            async with client() as relay_client:
                return await relay_client.relay.create_many(requests(), concurrency=20)

        loading = asyncio.create_task(load())
        reloads = size(5, 50)
        for number in range(reloads):
            sent = len(plaid.requests)
            write_certificate()
            audit.rename(tmp_path / f"audit.{number}")
            process.send_signal(signal.SIGHUP)
            assert await process.stderr.readline() == b"plaid-relay: reloaded\n"
            async with client() as relay_client:  # over a new connection, with the new certificate
                await relay_client.relay.create([REPORT], f"single-{number}")
            while len(plaid.requests) < sent + 40:
                await asyncio.sleep(0.01)
        done.set()
        result = await loading
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert result.counts.keys() == {"created"}
    calls = result.counts["created"] + reloads
    assert len(plaid.ledger) == calls
    lines = [line for path in tmp_path.glob("audit.*") for line in path.read_text().splitlines()]
    assert [json.loads(line)["status"] for line in lines] == [200] * calls
