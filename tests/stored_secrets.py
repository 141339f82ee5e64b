"""A search for secrets in all that a Temporal server and a PostgreSQL server store and return."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import sqlite3
import tempfile
from typing import TYPE_CHECKING

from attrs import frozen
from temporalio.api.workflowservice.v1 import (
    DescribeActivityExecutionRequest,
    ListActivityExecutionsRequest,
    PollActivityExecutionRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from postgres_server import PostgresServer
    from temporal_server import TemporalServer
    from temporalio.client import Client

NAMESPACE = "default"


def encodings(secret: str) -> set[bytes]:
    """Return the bytes of a secret, as text, in hexadecimal digits, and in base64 at each of its alignments."""
    raw = secret.encode()
    # The first and the last characters of an aligned part depend on what surrounds the secret.
    aligned = (base64.b64encode(b"." * shift + raw)[4 * (shift > 0) : -4] for shift in range(3))
    return {raw, raw.hex().encode(), *aligned}


@frozen
class Finding:
    """An encoding of a secret in a place."""

    place: str
    secret: str


async def find_secrets(
    secrets: Iterable[str], temporal: TemporalServer, client: Client, postgres: PostgresServer
) -> list[Finding]:
    """Return where any of the secrets is stored, or returned by Temporal's API."""
    needles = [(secret, needle) for secret in secrets for needle in encodings(secret)]
    assert needles
    findings = []

    def search(place: str, content: bytes) -> None:
        findings.extend(Finding(place, secret) for secret, needle in needles if needle in content)

    def search_files() -> None:
        for path in [*temporal.folder.rglob("*"), *(postgres.folder / "data").rglob("*")]:
            if path.is_file():
                with contextlib.suppress(FileNotFoundError):  # a server has deleted it since the listing
                    search(str(path), path.read_bytes())
        for place, value in read_sqlite(temporal.database_files()):
            search(place, value)

    await asyncio.to_thread(search_files)
    async for place, response in read_api(client):
        search(place, response)
    for [table] in await postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        for [row] in await postgres.execute(f'SELECT t::text FROM "{table}" t'):
            search(f"table {table}", row.encode())
    return findings


def read_sqlite(files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield each value of a database: a file's pages may split a long one."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copy(path, folder) for path in files]
        with contextlib.closing(sqlite3.connect(copies[0])) as connection:
            connection.text_factory = bytes
            tables = [
                name.decode()
                for [name] in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            for table in tables:
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        yield (
                            f"Temporal's table {table}",
                            value if isinstance(value, bytes) else b"%r" % value,
                        )


async def read_api(client: Client) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the responses of Temporal's API about each activity, as they are encoded on the wire."""
    service, token = client.workflow_service, b""
    while True:
        page = await service.list_activity_executions(
            ListActivityExecutionsRequest(namespace=NAMESPACE, next_page_token=token)
        )
        yield "list", page.SerializeToString()
        for execution in page.executions:
            yield "describe", await describe(client, execution.activity_id)
            if execution.HasField("close_time"):
                request = PollActivityExecutionRequest(
                    namespace=NAMESPACE, activity_id=execution.activity_id, run_id=execution.run_id
                )
                yield "result", (await service.poll_activity_execution(request)).SerializeToString()
        if not (token := page.next_page_token):
            return


async def describe(client: Client, activity_id: str) -> bytes:
    """Return everything that Temporal's API returns about an activity, as it is encoded on the wire."""
    request = DescribeActivityExecutionRequest(
        namespace=NAMESPACE,
        activity_id=activity_id,
        include_input=True,
        include_outcome=True,
        include_heartbeat_details=True,
        include_last_failure=True,
    )
    return (await client.workflow_service.describe_activity_execution(request)).SerializeToString()
