"""PDFs into files: whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import sys
import threading
import traceback
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import open_files, running_process_async, wait_until_async
from support import OWNER, QUICK
from test_transport import read_request, serving

from plaid_relay_async import (
    ConfigurationError,
    ConnectionLostError,
    InvalidRequestError,
    RelayClient,
    ReportNotReadyError,
    ResponseDecodeError,
)
from plaid_relay_async.client.files import PartFile
from plaid_relay_async.errors import Hidden
from plaid_relay_async.simulator import Fault

PDF = "/credit/relay/pdf/get"
NOT_READY = {"error_type": "ASSET_REPORT_ERROR", "error_code": "PRODUCT_NOT_READY"}
HALF = "%PDF-1.4 and so on, but without an end"


@pytest.fixture
async def relay_token(plaid, client):
    made = await client.relay.create([plaid.add_report()], "partner")
    return made.relay_token


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "pdfs"
    folder.mkdir()
    return folder / "report.pdf"


async def test_a_pdf_is_saved_as_it_is(plaid, partner, relay_token, target):
    """The file has the bytes that get_pdf gives, is its owner's alone, and nothing lies beside it."""
    saved = await partner.relay.download_pdf(relay_token, target)
    assert target.read_bytes() == (await partner.relay.get_pdf(relay_token)).content
    assert (saved.path, saved.size) == (target, target.stat().st_size)
    assert saved.request_id == plaid.requests[-2].request_id
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


async def test_a_report_of_ones_own_is_saved_as_well(plaid, client, target):
    """The owner's PDFs go the same way, with the days that were asked for."""
    saved = await client.asset_report.download_pdf(plaid.add_report(), str(target), days_to_include=5)
    assert target.read_bytes().startswith(b"%PDF-")
    assert saved.path == target


async def test_a_file_that_is_there_is_left_alone(plaid, partner, relay_token, target):
    """No file is written over, nor a link followed, and nothing is sent for it."""
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


async def test_a_file_that_comes_meanwhile_is_left_alone(plaid, partner, relay_token, target):
    """Somebody else's file of that name stays as it is, and the PDF isn't left beside it."""
    plaid.fail(Fault(path=PDF, latency=0.5))
    saving = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
    await wait_until_async(lambda: plaid.counts[PDF])
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        await saving
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
    """What get_pdf raises is raised here, and there is no file, nor half of one."""
    plaid.fail(fault)
    with pytest.raises(error):
        await partner.relay.get_pdf(relay_token)
    with pytest.raises(error):
        await partner.relay.download_pdf(relay_token, target)
    assert list(target.parent.iterdir()) == []


async def test_a_repeated_read_begins_anew(plaid, partner, relay_token, target):
    """What came before the connection broke isn't in the file."""
    plaid.fail(Fault(path=PDF, truncate=300, times=2))
    await partner.relay.download_pdf(relay_token, target)
    assert plaid.counts[PDF] == 3
    assert target.read_bytes() == (await partner.relay.get_pdf(relay_token)).content


async def test_a_cancelled_download_leaves_no_file(plaid, partner, relay_token, target):
    """At whichever point it is cancelled, nothing is left behind."""
    plaid.fail(Fault(path=PDF, latency=0.01))
    for delay in (0, 0.001, 0.003, 0.01, 0.02):
        saving = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
        await asyncio.sleep(delay)
        saving.cancel()
        await asyncio.wait([saving])
        target.unlink(missing_ok=True)
        await wait_until_async(lambda: not list(target.parent.iterdir()))


def whole_pdf(middle: bytes) -> bytes:
    return b"%PDF-1.7\n" + middle + b"%%EOF\n"


def http(body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length or len(body)}\r\nPlaid-Request-ID: q7\r\n\r\n"
    return head.encode() + body


async def test_a_long_start_that_came_to_nothing_isnt_under_a_short_whole(target):
    """Where the first attempt broke off late and the second one is short, the file is as short."""
    answers = [http(whole_pdf(b"x" * 2_000_000), 4_000_000), http(whole_pdf(b"short"))]

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(answers.pop(0))
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
from test_transport import read_request, serving
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
async def test_a_file_that_cant_be_written_is_the_callers_trouble(target, attempts):
    """Where the disk is full the OSError comes out as it is; no half file is left, nor an open one."""
    # A process of its own: the limit, which stands for a full disk, is on all files of one.
    words = (str(Path(__file__).parent), str(target), str(attempts))
    words = (sys.executable, "-W", "error", "-c", FULL_DISK, *words)
    async with running_process_async(*words, stdout=asyncio.subprocess.PIPE) as process:
        text, _ = await process.communicate()
    assert json.loads(text) == ["File too large", 0, []]
    assert list(target.parent.iterdir()) == []


def open_part_files() -> list[str]:
    """The part files that this process has open, deleted ones too; none where the system doesn't tell."""
    return [target for target in open_files() if ".part" in target]


async def test_a_long_pdf_takes_no_more_memory_than_a_short_one(target):
    """A PDF is written as it arrives: 40 MB of it are never in memory together."""
    middle, pieces = os.urandom(1 << 16), 640
    whole = len(middle) * pieces + len(whole_pdf(b""))

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(http(b"%PDF-1.7\n", whole))
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
    assert (saved.size, saved.request_id, target.stat().st_size) == (whole, "q7", whole)
    # Some ten buffers of up to 256 KB, on both sides; how many of them are full at once is a matter of timing.
    assert peak < whole / 5


@pytest.mark.parametrize("path", ["", "a\0b.pdf", "a\0b/c.pdf", "\ud800.pdf", b"a.pdf", 5])
def test_a_path_that_names_no_file_is_refused_at_once(path):
    """Nothing is sent, nor awaited, for a path that can't be a file's."""
    for operations in (RelayClient(OWNER).relay, RelayClient(OWNER).asset_report):
        with pytest.raises(ConfigurationError, match="path must name a file"):
            operations.download_pdf("t", path)


async def test_a_name_that_is_too_long_is_refused_before_anything_is_sent(plaid, client, tmp_path):
    """The file system's own error comes out, and no report was read for it."""
    with pytest.raises(OSError, match="too long"):
        await client.relay.download_pdf("t", tmp_path / ("x" * 300))
    assert not plaid.requests
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ part files


def test_a_file_system_without_links_will_do(target):
    """There a name is reserved first, so that no other file is written over; and the file is as private."""

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name, taken in ((target, False), (target.with_name("taken.pdf"), True)):
        part = PartFile(name, link=no_links)
        part.open()
        part.write(Hidden(b"whole"))
        if taken:
            name.write_text("mine", encoding="utf-8")
            with pytest.raises(FileExistsError):
                part.publish()
        else:
            part.publish()
        part.discard()
    assert target.read_bytes() == b"whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in target.parent.iterdir()) == ["report.pdf", "taken.pdf"]


def test_a_name_that_was_reserved_for_nothing_is_free_again(target):
    """Where the file can't take the name that was reserved for it, no empty file keeps that."""

    def lost(part: Path, _: Path) -> None:
        part.unlink()
        raise PermissionError(errno.EPERM, "Operation not permitted")

    part = PartFile(target, link=lost)
    part.open()
    with pytest.raises(FileNotFoundError):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_what_fails_for_another_reason_is_raised(target):
    """Only what says that there are no links is got round."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    part = PartFile(target, link=full)
    part.open()
    with pytest.raises(OSError, match="No space left"):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_a_file_is_closed_before_it_gets_its_name(target):
    """What a system says only when a file is closed, such as that a quota is used up, comes in time."""
    part = PartFile(target)
    part.open()
    os.close(part._file.fileno())  # now closing it fails, as it may on a file system of the network
    with pytest.raises(OSError, match="Bad file descriptor"):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_no_frame_shows_what_is_written(target):
    """A report is a person's: the error of a disk that is full holds none of it."""
    part = PartFile(target)
    part.open()
    os.close(part._file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        part.write(Hidden(b"JOHN DOE"))
    frames = [f.f_locals for f, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert "JOHN DOE" not in repr(frames)
    with pytest.raises(OSError, match="Bad file descriptor"):
        part._file.close()
    part.discard()


def test_a_file_that_is_given_up_before_it_is_made_is_never_made(target):
    """Whoever is cancelled while a thread waits for its turn leaves nothing behind."""
    part = PartFile(target)
    part.discard()
    part.open()
    part.restart()
    part.write(Hidden(b"x"))
    part.publish()
    assert list(target.parent.iterdir()) == []


def test_who_gives_a_file_up_waits_for_who_is_at_it(target):
    """A thread that is writing when its waiter is cancelled ends first; then the file is closed."""
    part = PartFile(target)
    part.open()
    with part._lock:  # as a thread that is at it has it
        giving_up = threading.Thread(target=part.discard)
        giving_up.start()
        giving_up.join(0.05)
        assert giving_up.is_alive()
        assert list(target.parent.iterdir())
    giving_up.join()
    assert list(target.parent.iterdir()) == []


async def test_a_file_is_taken_away_though_nobody_waits_for_that(partner, relay_token, target):
    """However often the call is cancelled, a thread that is late leaves nothing behind."""
    busy = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        saving = asyncio.ensure_future(partner.relay.download_pdf(relay_token, target))
        while not list(target.parent.iterdir()):
            await asyncio.sleep(0.001)
        executor.submit(busy.wait)
        saving.cancel()
        await asyncio.sleep(0.01)
        saving.cancel()
        await asyncio.wait([saving])
        busy.set()
    assert list(target.parent.iterdir()) == []
