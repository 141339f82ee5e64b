"""Responses with every kind of string that JSON allows, written by `bulk` to every kind of output."""

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

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
DISK = "64k"
STRINGS = [
    "\ud800",  # lone surrogates: high, low, and both in the wrong order
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
    """Responds to each creation with a token and a request ID that contain unusual characters.

    Attributes:
        tokens: the token that was sent for each partner.
        long: whether some strings have a hundred kilobytes, and some responses ten megabytes, most of which
            the client doesn't read.
    """

    rng: random.Random
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
        # With or without escapes. Without them a lone surrogate has bytes that UTF-8 doesn't allow.
        return json.dumps(response, ensure_ascii=bool(number % 3)).encode(errors="surrogatepass")

    def string(self) -> str:
        ranges = [(0, 0x20), (0x20, 0x7F), (0x7F, 0xA0), (0xA0, 0x800), (0xD800, 0xE000), (0xE000, 0x110000)]
        low, high = self.rng.choice(ranges)
        characters = "".join(map(chr, (self.rng.randrange(low, high) for _ in range(20))))
        # Two surrogates that are a pair are decoded as one character.
        return str(json.loads(json.dumps(characters + self.rng.choice(STRINGS))))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, plaid: Server, *args: Any) -> None:
        self.plaid = plaid
        super().__init__(*args)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = self.plaid.body(request["secondary_client_id"])
        with contextlib.suppress(ConnectionError):  # the client doesn't read all of a body that is too long
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def start_server() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start_server(*, long: bool) -> tuple[Server, str]:
            plaid = Server(random.Random(18), long)
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, plaid)))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return plaid, f"http://127.0.0.1:{server.server_port}"

        yield start_server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Return a folder on a small disk, and a command prefix that enforces the limit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0:
        try:
            yield folder, []
        finally:
            subprocess.run(["umount", folder], check=True)
    else:
        # Only root may mount a file system. Otherwise, no file of the process may exceed 8 blocks.
        yield folder, ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh"]


def parse_csv_rows(path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(2**30)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def parse_json_rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.split(b"\n") if line.endswith(b"}")]


def csv_token(token: str) -> str:
    """Return a token as CSV represents it: with escapes for what UTF-8 can't represent."""
    return token.encode(errors="backslashreplace").decode()


def created_tokens(rows: list[dict[str, Any]]) -> dict[str, str]:
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
    start_server: Any,
    size: Any,
    tmp_path: Path,
    small_disk: Any,
    request: Any,
    output: str,
    journal: str | None,
) -> None:
    """Every created token is in the output or in a rescue file, and in the journal if there is one."""
    count = size(*SIZES)
    disk, limit = small_disk if "disk" in output else (tmp_path, [])
    plaid, url = start_server(long=not limit)
    environment = os.environ | {
        "PLAID_BASE_URL": url,
        "PLAID_CLIENT_ID": "owner",
        "PLAID_SECRET": "secret-of-the-owner",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
    }
    (tmp_path / "partners.csv").write_text("".join(f"p{number}\n" for number in range(count)))
    path = disk / ("out.csv" if "csv" in output else "out.jsonl")
    args = ["bulk", tmp_path / "partners.csv", "--report-token", "assets-sandbox-1", "--concurrency", "10"]
    args += ["--output", "-" if "pipe" in output else path]
    journal_args = []
    if journal is not None:
        journal_args = ["--journal", tmp_path / "relay.db"]
        if journal == "postgresql":
            journal_args = ["--journal", _fresh(request.getfixturevalue("postgres"))]
        args += [*journal_args, "--run", "r"]

    def command(*args: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return running_process([*map(str, args)], env=environment, **pipes)

    with command(*limit, *COMMAND, *args) as process, (tmp_path / "errors").open("wb") as errors:
        assert process.stdout is not None
        assert process.stderr is not None
        reading = threading.Thread(target=lambda: errors.writelines(process.stderr or ()))
        reading.start()
        content = b""
        if output == "closed pipe":
            content = b"".join(process.stdout.readline() for _ in range(count // 4))
            content += process.stdout.peek()  # buffered by Python after the last line
            process.stdout.close()
        else:
            content = process.stdout.read()
        reading.join()
    message = (tmp_path / "errors").read_text()
    complete = output in {"csv", "jsonl", "pipe"}
    assert process.returncode == (0 if complete else 1), message
    assert not any(token in message for token in plaid.tokens.values())
    rescues = [*tmp_path.rglob("plaid-relay-rescued-*")]
    rows = parse_json_rows(content) if "pipe" in output else []
    if path.exists():
        rows = parse_csv_rows(path) if path.suffix == ".csv" else parse_json_rows(path.read_bytes())
    rescued_rows = [row for rescue in rescues for row in parse_json_rows(rescue.read_bytes())]
    assert bool(rescued_rows) == (not complete) or limit  # with the limit, the journal may fail first
    assert len(plaid.tokens) == count or not complete
    written, rescued = created_tokens(rows), created_tokens(rescued_rows)
    expected = (
        {partner: csv_token(token) for partner, token in plaid.tokens.items()}
        if "csv" in output
        else plaid.tokens
    )
    assert written.items() <= expected.items()
    assert rescued.items() <= plaid.tokens.items()
    assert written.keys() | rescued.keys() == plaid.tokens.keys()
    if journal_args and not limit:
        with command(*COMMAND, "export", "r", *journal_args) as process:
            exported, _ = process.communicate()
        assert created_tokens(parse_json_rows(exported)) == plaid.tokens


def _fresh(server: PostgresServer) -> str:
    asyncio.run(server.reset())
    return server.url
