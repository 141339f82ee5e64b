"""PDFs are saved completely or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import open_files, running_process_async, wait_until_async
from servers import read_request, serving
from support import OWNER, PDF, QUICK

from plaid_relay_async import (
    ConfigurationError,
    ConnectionLostError,
    InvalidRequestError,
    RelayClient,
    ReportNotReadyError,
    ResponseDecodeError,
)
from plaid_relay_async.simulator import Fault

NOT_READY = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}
HALF = "%PDF-1.4 and so on, but without an end"


@pytest.fixture
async def relay_token(plaid, client):
    created = await client.relay.create([plaid.add_report()], "partner")
    return created.relay_token


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "pdfs"
    folder.mkdir()
    return folder / "report.pdf"


async def test_a_pdf_is_saved_as_it_is(plaid, partner, relay_token, target):
    """The file has the bytes that get_pdf returns and mode 0600, and no other file is left."""
    saved = await partner.relay.download_pdf(relay_token, target)
    assert target.read_bytes() == (await partner.relay.get_pdf(relay_token)).content
    assert (saved.path, saved.size) == (target, target.stat().st_size)
    assert saved.request_id == plaid.requests[-2].request_id
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


async def test_a_lender_saves_its_own_report(plaid, client, target):
    """The lender's PDFs are saved in the same way, with the days that were requested."""
    saved = await client.asset_report.download_pdf(plaid.add_report(), str(target), days_to_include=5)
    assert target.read_bytes().startswith(b"%PDF-")
    assert saved.path == target


async def test_an_existing_file_is_not_changed(plaid, partner, relay_token, target):
    """No file is overwritten, no link is followed, and nothing is sent."""
    target.write_text("mine", encoding="utf-8")
    link = target.with_name("link.pdf")
    link.symlink_to(target.with_name("nowhere"))
    for path in (target, link):
        with pytest.raises(FileExistsError):
            await partner.relay.download_pdf(relay_token, path)
    with pytest.raises(FileNotFoundError):
        await partner.relay.download_pdf(relay_token, target.parent / "no" / "such.pdf")
    assert target.read_text(encoding="utf-8") == "mine"
    assert plaid.counts[PDF] == 0


async def test_a_file_created_during_the_download_is_not_changed(plaid, partner, relay_token, target):
    """Another process's file of that name stays as it is, and no part file is left."""
    plaid.fail(Fault(path=PDF, latency=0.5))
    download = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
    await wait_until_async(lambda: plaid.counts[PDF])
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        await download
    assert target.read_text(encoding="utf-8") == "mine"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(path=PDF, status=400, body=NOT_READY), ReportNotReadyError),
        (Fault(path=PDF, status=404), InvalidRequestError),
        (Fault(path=PDF, truncate=200), ConnectionLostError),
        (Fault(path=PDF, close=True), ConnectionLostError),
        (Fault(path=PDF, status=200, body=HALF), ResponseDecodeError),
        (Fault(path=PDF, status=200, body={"request_id": "q"}), ResponseDecodeError),
    ],
)
async def test_an_error_leaves_no_file(plaid, partner, relay_token, target, fault, error):
    """The error of get_pdf is raised, and there is no file, complete or partial."""
    plaid.fail(fault)
    with pytest.raises(error):
        await partner.relay.get_pdf(relay_token)
    with pytest.raises(error):
        await partner.relay.download_pdf(relay_token, target)
    assert list(target.parent.iterdir()) == []


async def test_a_repeated_read_starts_the_file_again(plaid, partner, relay_token, target):
    """What arrived before the connection broke isn't in the file."""
    plaid.fail(Fault(path=PDF, truncate=300, times=2))
    await partner.relay.download_pdf(relay_token, target)
    assert plaid.counts[PDF] == 3
    assert target.read_bytes() == (await partner.relay.get_pdf(relay_token)).content


async def test_a_cancelled_download_leaves_no_file(plaid, partner, relay_token, target):
    """At whatever point it is cancelled, no file is left."""
    plaid.fail(Fault(path=PDF, latency=0.01))
    for delay in (0, 0.001, 0.003, 0.01, 0.02):
        download = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
        await asyncio.sleep(delay)
        download.cancel()
        await asyncio.wait([download])
        target.unlink(missing_ok=True)
        await wait_until_async(lambda: not list(target.parent.iterdir()))


def whole_pdf(middle: bytes) -> bytes:
    return b"%PDF-1.7\n" + middle + b"%%EOF\n"


def http(body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length or len(body)}\r\nPlaid-Request-ID: q7\r\n\r\n"
    return head.encode() + body


async def test_a_long_failed_attempt_leaves_no_bytes_after_a_short_success(target):
    """If the first attempt breaks off late and the second response is short, the file is just as short."""
    responses = [http(whole_pdf(b"x" * 2_000_000), 4_000_000), http(whole_pdf(b"short"))]

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(responses.pop(0))
        await writer.drain()

    async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url, retry=QUICK) as client:
        saved = await client.relay.download_pdf("t", target)
    assert target.read_bytes() == whole_pdf(b"short")
    assert saved.size == len(whole_pdf(b"short"))


FULL_DISK = """
import asyncio, json, os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_download import http, open_part_files, whole_pdf
from servers import read_request, serving
from plaid_relay_async import Credentials, RelayClient, RetryPolicy

target, attempts = Path(sys.argv[2]), int(sys.argv[3])
body = whole_pdf(b"x" * 2_000_000)
answers = [http(body, 4_000_000)] * (attempts - 1) + [http(body)]

async def handle(reader, writer):
    await read_request(reader)
    writer.write(answers.pop(0))
    await writer.drain()

async def main():
    quick = RetryPolicy(backoff=0.001)
    async with serving(handle) as (url, _), RelayClient(Credentials("a", "b"), base_url=url, retry=quick) as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            await client.relay.download_pdf("t", target)
        except OSError as error:
            told = error.strerror
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(json.dumps([told, len(answers), open_part_files()]))

asyncio.run(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can limit the size of files")
@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_write_error_is_raised_to_the_caller(target, attempts):
    """If the disk is full the OSError is raised; no partial file is left, and no open one."""
    # A separate process, because the limit, which simulates a full disk, applies to all files of a process.
    words = (str(Path(__file__).parent), str(target), str(attempts))
    words = (sys.executable, "-W", "error", "-c", FULL_DISK, *words)
    async with running_process_async(*words, stdout=asyncio.subprocess.PIPE) as process:
        text, _ = await process.communicate()
    assert json.loads(text) == ["File too large", 0, []]
    assert list(target.parent.iterdir()) == []


def open_part_files() -> list[str]:
    """Return this process's open part files, deleted ones included, if the system lists them."""
    return [target for target in open_files() if ".part" in target]


async def test_a_long_pdf_takes_no_more_memory_than_a_short_one(target):
    """A PDF is written as it arrives: 40 MB are never in memory together."""
    middle, pieces = os.urandom(1 << 16), 640
    length = len(middle) * pieces + len(whole_pdf(b""))

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(http(b"%PDF-1.7\n", length))
        for _ in range(pieces):
            writer.write(middle)
            await writer.drain()
        writer.write(b"%%EOF\n")
        await writer.drain()

    async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url, retry=QUICK) as client:
        tracemalloc.start()
        try:
            saved = await client.relay.download_pdf("t", target)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (saved.size, saved.request_id, target.stat().st_size) == (length, "q7", length)
    # About ten buffers of up to 256 KB on both sides; how many of them are full depends on timing.
    assert peak < length / 5


@pytest.mark.parametrize("path", ["", "a\0b.pdf", "a\0b/c.pdf", "\ud800.pdf", b"a.pdf", 5])
def test_a_path_without_a_file_name_is_rejected_immediately(path):
    """Nothing is sent or awaited for a path that can't name a file."""
    for operations in (RelayClient(OWNER).relay, RelayClient(OWNER).asset_report):
        with pytest.raises(ConfigurationError, match="path must name a file"):
            operations.download_pdf("t", path)


async def test_a_file_name_that_is_too_long_is_rejected_before_sending(plaid, client, tmp_path):
    """The file system's error is raised, and no report was read."""
    with pytest.raises(OSError, match="too long"):
        await client.relay.download_pdf("t", tmp_path / ("x" * 300))
    assert not plaid.requests
    assert not list(tmp_path.iterdir())


async def test_a_file_is_removed_even_if_the_call_is_cancelled_again(plaid, partner, relay_token, target):
    """However often the call is cancelled, a slow thread leaves no file."""
    plaid.fail(Fault(path=PDF, latency=60))
    release = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        download = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
        while not list(target.parent.iterdir()):
            await asyncio.sleep(0.001)
        executor.submit(release.wait)
        # Two cancellations in one iteration of the loop count as one, so how many it takes is not known.
        cancellations = 0
        while not download.done():
            download.cancel()
            cancellations += 1
            await asyncio.sleep(0.001)
        release.set()
    assert cancellations >= 2
    assert list(target.parent.iterdir()) == []
