"""Responses with every kind of string that JSON allows, through `bulk` into every kind of output."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from processes import running_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from postgres_server import PostgresServer

pytestmark = pytest.mark.full_size

COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
DISK = "64k"
STRINGS = [
    "\ud800",  # half a character: the first, the second, both the wrong way round
    "\udfff",
    "a\udc00\ud83db",
    "\U0001f600é\u0301",
    "\0",
    "a\0b\0",
    "".join(map(chr, range(32))),
    "".join(map(chr, range(127, 160))),
    "\u2028\u2029\x85\x0b\x0c",
    "\ufeff",
    "\ufffe\uffff\U0010ffff\ue000",
    "\u202ereversed\u2066",
    "\x1b[2J\x1b]0;title\x07\x1b[8m",
    "[red]x[/red]",
    "[/nope] [link=file:///etc/passwd]x :smile:",
    '"',
    '""","',
    "a,b;c\td",
    "\r",
    "a\r\nb\nc\rd",
    '\n"\n',
    "=1+1",
    " \t",
    r"\ud800 \x00 \n",
    "%s %n {0} ${HOME} $(id) `id`",
    "<script>&amp;'</script>",
    "x" * 100_000,
]
LONG = "x" * 10_000_000
SIZES = (40, 500)


@define
class Server:
    """Answers each creation with a token and a request id of some odd kind.

    Attributes:
        tokens: what was sent for each partner.
        long: whether some strings have a hundred kilobytes, and some responses ten megabytes, most of which
            the client doesn't read.
    """

    chance: random.Random
    long: bool
    tokens: dict[str, str] = field(factory=dict)
    lock: threading.Lock = field(factory=threading.Lock)

    def body(self, partner: str) -> bytes:
        with self.lock:
            number = len(self.tokens)
            odd = STRINGS[number] if number < len(STRINGS) else self.string()
            odd = odd if self.long else odd[:1000]
            self.tokens[partner] = f"credit-relay-{partner}-{odd[:1000]}"
        response = {
            "relay_token": self.tokens[partner],
            "request_id": odd if number % 2 else odd * 2,
            odd[:1000]: {odd[:1000]: [odd[:1000]]},
            "more": LONG if self.long and number % 30 == 7 else "",
        }
        # Escaped, or as it is: half a character then has bytes that UTF-8 doesn't allow.
        return json.dumps(response, ensure_ascii=bool(number % 3)).encode(errors="surrogatepass")

    def string(self) -> str:
        ranges = [(0, 0x20), (0x20, 0x7F), (0x7F, 0xA0), (0xA0, 0x800), (0xD800, 0xE000), (0xE000, 0x110000)]
        low, high = self.chance.choice(ranges)
        characters = "".join(map(chr, (self.chance.randrange(low, high) for _ in range(20))))
        # Two halves that are a character together come back as that character.
        return str(json.loads(json.dumps(characters + self.chance.choice(STRINGS))))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, plaid: Server, *words: Any) -> None:
        self.plaid = plaid
        super().__init__(*words)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = self.plaid.body(request["secondary_client_id"])
        with contextlib.suppress(ConnectionError):  # what is too long isn't read to its end
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def served() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def served(*, long: bool) -> tuple[Server, str]:
            plaid = Server(random.Random(18), long)
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, plaid)))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return plaid, f"http://127.0.0.1:{server.server_port}"

        yield served


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder on a disk that is nearly full, and the command prefix under which that holds."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0:
        try:
            yield folder, []
        finally:
            subprocess.run(["umount", folder], check=True)
    else:
        # Only root may mount: no file of the process may have more than 8 blocks, wherever it is.
        yield folder, ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh"]


def rows_in_csv(path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(2**30)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def rows_in(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.split(b"\n") if line.endswith(b"}")]


def in_csv(token: str) -> str:
    """Return what CSV has for a token: what UTF-8 can't represent is escaped."""
    return token.encode(errors="backslashreplace").decode()


def created(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["secondary_client_id"]: row["relay_token"] for row in rows if row["outcome"] == "created"}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("output", "journal"),
    [
        *product(["csv", "jsonl", "pipe", "closed pipe", "full disk"], [None, "sqlite"]),
        ("csv", "postgresql"),
        ("full disk, csv", None),
    ],
)
def test_every_string_through_every_output(
    served: Any, size: Any, tmp_path: Path, small_disk: Any, request: Any, output: str, journal: str | None
) -> None:
    """Every created token is in what was read of the output, or in a rescue file, and in the journal if there is one."""
    count = size(*SIZES)
    disk, limit = small_disk if "disk" in output else (tmp_path, [])
    plaid, url = served(long=not limit)
    environment = os.environ | {
        "PLAID_BASE_URL": url,
        "PLAID_CLIENT_ID": "owner",
        "PLAID_SECRET": "secret-of-the-owner",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
    }
    (tmp_path / "partners.csv").write_text("".join(f"p{number}\n" for number in range(count)))
    path = disk / ("out.csv" if "csv" in output else "out.jsonl")
    words = ["bulk", tmp_path / "partners.csv", "--report-token", "assets-sandbox-1", "--concurrency", "10"]
    words += ["--output", "-" if "pipe" in output else path]
    recorded = []
    if journal is not None:
        recorded = ["--journal", tmp_path / "relay.db"]
        if journal == "postgresql":
            recorded = ["--journal", _fresh(request.getfixturevalue("postgres"))]
        words += [*recorded, "--run", "r"]

    def command(*words: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return running_process([*map(str, words)], env=environment, **pipes)

    with command(*limit, *COMMAND, *words) as process, (tmp_path / "errors").open("wb") as errors:
        assert process.stdout is not None
        assert process.stderr is not None
        reading = threading.Thread(target=lambda: errors.writelines(process.stderr or ()))
        reading.start()
        content = b""
        if output == "closed pipe":
            content = b"".join(process.stdout.readline() for _ in range(count // 4))
            content += process.stdout.peek()  # what was read from the pipe, and not by the line
            process.stdout.close()
        else:
            content = process.stdout.read()
        reading.join()
    message = (tmp_path / "errors").read_text()
    complete = output in {"csv", "jsonl", "pipe"}
    assert process.returncode == (0 if complete else 1), message
    assert not any(token in message for token in plaid.tokens.values())
    rescues = [*tmp_path.rglob("plaid-relay-rescued-*")]
    rows = rows_in(content) if "pipe" in output else []
    if path.exists():
        rows = rows_in_csv(path) if path.suffix == ".csv" else rows_in(path.read_bytes())
    saved = [row for rescue in rescues for row in rows_in(rescue.read_bytes())]
    assert bool(saved) == (not complete) or limit  # with which the journal may fail first
    assert len(plaid.tokens) == count or not complete
    written, rescued = created(rows), created(saved)
    sent = (
        {partner: in_csv(token) for partner, token in plaid.tokens.items()}
        if "csv" in output
        else plaid.tokens
    )
    assert written.items() <= sent.items()
    assert rescued.items() <= plaid.tokens.items()
    assert written.keys() | rescued.keys() == plaid.tokens.keys()
    if recorded and not limit:
        with command(*COMMAND, "export", "r", *recorded) as process:
            exported, _ = process.communicate()
        assert created(rows_in(exported)) == plaid.tokens


def _fresh(server: PostgresServer) -> str:
    asyncio.run(server.reset())
    return server.url
