"""The HTTP side: one real aiohttp.web server on 127.0.0.1, which checks, acts, and fails as told."""

import asyncio
import gzip
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from aiohttp import web
from attrs import define, evolve, field, frozen

from plaid_relay_async.simulator.api_errors import ApiError, error_for_status
from plaid_relay_async.simulator.checks import API_VERSIONS, check_credentials, check_fields, check_version
from plaid_relay_async.simulator.faults import CONTROL_PREFIX, Fault, FaultScript, parse_faults
from plaid_relay_async.simulator.limits import Limit, RateLimitedError, RequestLimiter
from plaid_relay_async.simulator.operations import (
    OPERATIONS,
    OperationRequest,
    OperationResult,
    PendingReport,
)
from plaid_relay_async.simulator.samples import finish_body, render_unfinished_body
from plaid_relay_async.simulator.world import Ledger, World

_MAX_RECORDED_REQUESTS = 10_000
_SHUTDOWN_TIMEOUT = 0.4  # aiohttp waits this long twice: for a handler to end, and for it to be cancelled
_GZIP_MIN_BYTES = 1_000  # bytes
# What is bigger is made in a thread, so as not to hold up the event loop: so many records take up to 40 ms to
# write, and so many bytes 5 ms to zip.
_THREAD_MIN_RECORDS = 1_000
_THREAD_MIN_BYTES = 500_000
_CACHED_BODIES = 4  # of such reports, for whoever asks again


@frozen
class ReceivedRequest:
    """One request to Plaid's paths, as it came and as it ended.

    Attributes:
        path: Its path.
        client_id: Who it said it was, from the headers or the body.
        secondary_client_id: The partner that its body names.
        request_id: The one of the answer, whether or not that was sent.
        acted: Whether it was carried out.
        status: Of the answer; None while there is none, or where the connection was cut.
        headers: By their names in lower case.
    """

    path: str
    client_id: str | None
    secondary_client_id: str | None
    request_id: str
    executed: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)


@frozen
class _ParsedRequest:
    """One request to Plaid's paths, read to its end."""

    number: int
    request_id: str
    request: web.BaseRequest = field(repr=False)
    # None where the body is no JSON object
    body: dict[str, Any] | None = field(repr=False)

    def credential(self, name: str, header: str) -> Any:
        """A credential, of the header first: which of two that differ Plaid takes is not published."""
        return self.request.headers.get(header) or (self.body or {}).get(name)

    @property
    def partner(self) -> Any:
        return (self.body or {}).get("secondary_client_id")

    @property
    def client_id(self) -> str | None:
        said = self.credential("client_id", "PLAID-CLIENT-ID")
        return said if isinstance(said, str) else None

    def to_received_request(self) -> ReceivedRequest:
        return ReceivedRequest(
            path=self.request.path,
            client_id=self.client_id,
            secondary_client_id=self.partner if isinstance(self.partner, str) else None,
            request_id=self.request_id,
            headers={name.lower(): value for name, value in self.request.headers.items()},
        )


@define
class _Response:
    """An answer, not sent yet."""

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(factory=dict, repr=False)


_JSON = {"Content-Type": "application/json"}


def _json_response(status: int, content: object) -> _Response:
    return _Response(status, json.dumps(content).encode(), dict(_JSON))


def _fault_response(fault: Fault, status: int, request_id: str) -> _Response:
    """The answer that a fault asks for."""
    headers = {name.title(): value for name, value in fault.headers.items()}
    code = fault.body.get("error_code") if isinstance(fault.body, dict) else None
    full = error_for_status(status, code).body(request_id)
    if isinstance(fault.body, str):
        return _Response(status, fault.body.encode(errors="replace"), {"Content-Type": "text/html"} | headers)
    if fault.body is None and status < 400:
        return _Response(status, b"", headers)
    content = full if fault.body is None else fault.body
    if isinstance(content, dict) and content.keys() & {"error_code", "error_type"}:
        content = full | content
    response = _json_response(status, content)
    response.headers |= headers
    return response


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine: that of a page elsewhere that rebinds its name does not."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


class Simulator:
    """A Plaid of one's own, on 127.0.0.1 and nowhere else.

    Use it as an async context manager, or call `start` and `close`. Its tokens are of the sandbox's form, and
    mean nothing to Plaid. A `webhook` is checked, and nothing is sent there.

    Args:
        port: To listen on; 0 takes a free one.
        clients: The secret of each client_id; None takes any that are not empty.
        reports: Report tokens that are ready from the start, and serve every owner.
        generating: Seconds until a new report is ready.
        faults: Rules to begin with.
        limits: Of the rate, for as long as it lives; by default there are none.
        seed: Of what reports hold, and of the draws for a fault's `rate`.
        latency: Seconds before every request to Plaid's paths is handled, or what gives them anew for each.
        transactions: How many a report holds that is created here, shared out among its accounts; None is
            twenty an account. Of more than 15,000 the generation fails, as Plaid's does.
        clock: Seconds that only grow; by it reports get ready, public tokens expire, and limits make room.

    Attributes:
        counts: How many requests each of Plaid's paths got.
        refused: How many of them a limit refused.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        clients: Mapping[str, str] | None = None,
        reports: Iterable[str] = (),
        generation_delay: float = 0.5,
        faults: Iterable[Fault] = (),
        limits: Iterable[Limit] = (),
        seed: int = 0,
        latency: Callable[[], float] | float = 0.0,
        transactions: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._clients = None if clients is None else dict(clients)
        self._latency = latency
        self._world = World(
            generation_delay=generation_delay, transactions=transactions, seed=seed, clock=clock
        )
        self._cached_body = lru_cache(_CACHED_BODIES)(render_unfinished_body)
        self._script = FaultScript(seed)
        self._script.add(faults)
        self._limiter = RequestLimiter(limits, clock)
        self._request_numbers = itertools.count()
        self._received: dict[int, ReceivedRequest] = {}
        self._runner: web.ServerRunner | None = None
        self._closing = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.rate_limited: Counter[str] = Counter()
        for token in reports:
            self._world.add_report(token)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            RuntimeError: It does so already.
            OSError: The port is taken.
        """
        if self._runner is not None:
            raise RuntimeError("this simulator has been started already")
        self._closing = asyncio.Event()
        runner = web.ServerRunner(
            web.Server(self._serve_request, access_log=None), shutdown_timeout=_SHUTDOWN_TIMEOUT
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner

    async def close(self) -> None:
        """Cut what is stalled, close every connection and free the port; the state stays to be read."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self._closing.set()
            await runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8080`.

        Raises:
            RuntimeError: It doesn't.
        """
        if self._runner is None:
            raise RuntimeError("this simulator is not started: use `async with`, or await its start()")
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def ledger(self) -> Ledger:
        """One entry for each relay token ever minted, in order; live."""
        return self._world.ledger

    @property
    def refreshes(self) -> Sequence[tuple[str, str]]:
        """The relay token and the new `asset_report_id` of each refresh, in order."""
        return tuple(self._world.refreshes)

    @property
    def requests(self) -> Sequence[ReceivedRequest]:
        """The last 10,000 requests to Plaid's paths, in the order in which they arrived."""
        return tuple(self._received.values())

    @property
    def webhooks(self) -> Sequence[Mapping[str, str]]:
        """What `/sandbox/item/fire_webhook` was asked to fire, in order; nothing is sent.

        Each has `webhook_type`, `webhook_code`, `item_id`, the `url` that the Item was linked with, and the
        `request_id` of the answer.
        """
        return tuple(dict(fired) for fired in self._world.webhooks)

    def add_report(
        self,
        token: str | None = None,
        *,
        transactions: int | None = None,
        days: int = 60,
        investments: bool = False,
        missing: Collection[str] = (),
    ) -> str:
        """Add a report that is ready, and serves every owner.

        Args:
            token: Its token; by default a fresh one.
            transactions: How many it holds, shared out among its accounts; None is twenty an account.
            days: How many days it goes back, 0 to 731.
            investments: Whether investment accounts are in it.
            missing: What it lacks, with a warning for each: of `owners`, `transactions`, `investments`.

        Raises:
            ValueError: An argument is out of its bounds.
        """
        return self._world.add_report(
            token, transactions=transactions, days=days, investments=investments, missing=missing
        )

    def break_item(
        self, access_token: str, error_code: str = "ITEM_LOGIN_REQUIRED", *, part: str | None = None
    ) -> None:
        """Let an Item fail, for the reports that are being generated and those still to come.

        A report can't be created with an Item that is broken already; one that breaks while a report is
        generated makes that `DATA_UNAVAILABLE`, unless `require_all_items` is false and another is whole.

        Args:
            access_token: Of the Item.
            error_code: Why, one of the types ITEM_ERROR or INSTITUTION_ERROR.
            part: What of it can't be had, so that its reports lack that and have a warning: one of `owners`,
                `transactions`, `investments`. None is the Item as a whole.

        Raises:
            ValueError: There is no such Item, code or part.
        """
        self._world.break_item(access_token, error_code, part)

    def repair_item(self, access_token: str) -> None:
        """Let all be well again with an Item, for the reports still to come.

        Raises:
            ValueError: There is no such Item.
        """
        self._world.repair_item(access_token)

    def fail(self, *faults: Fault) -> None:
        """Add rules to the script, behind those in force."""
        self._script.add(faults)

    def clear_faults(self) -> None:
        """Drop all rules."""
        self._script.clear()

    # One request

    async def _serve_request(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ConnectionError:  # the client hung up, or we close: aiohttp would log it as an error
            return _close_connection(request)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if not _is_loopback(request.headers.get("Host", "")):
            return await _send_response(
                request, _json_response(403, {"error": "the Host header must name this machine"})
            )
        if request.path.startswith(CONTROL_PREFIX):
            return await self._route_control(request)
        parsed = self._record_request(request, await request.read())
        await self._pause(self._latency() if callable(self._latency) else self._latency)
        try:
            self._limiter.admit(request.path, parsed.client_id)
        except RateLimitedError as over:
            return await self._reject_over_limit(parsed, over)
        return await self._handle(parsed, self._script.next_fault(request.path, parsed.partner))

    def _record_request(self, request: web.BaseRequest, raw: bytes) -> _ParsedRequest:
        number = next(self._request_numbers)
        self.counts[request.path] += 1
        parsed = _ParsedRequest(number, self._world.new_request_id(), request, _parse_object(raw))
        self._received[number] = parsed.to_received_request()
        self._received.pop(number - _MAX_RECORDED_REQUESTS, None)
        return parsed

    async def _reject_over_limit(self, parsed: _ParsedRequest, over: RateLimitedError) -> web.StreamResponse:
        self.rate_limited[parsed.request.path] += 1
        refusal = ApiError("RATE_LIMIT")
        response = _json_response(refusal.status, refusal.body(parsed.request_id))
        response.headers |= over.headers
        return await self._respond(parsed, response)

    async def _handle(self, parsed: _ParsedRequest, fault: Fault | None) -> web.StreamResponse:
        if fault is None:
            return await self._respond(parsed, await self._execute(parsed))
        if fault.truncate is not None or fault.when == "after":
            response = await self._execute(parsed)
            await self._pause(fault.latency)
        else:
            await self._pause(fault.latency)
            response = None
        return await self._apply_fault(parsed, fault, response)

    async def _apply_fault(
        self, parsed: _ParsedRequest, fault: Fault, response: _Response | None
    ) -> web.StreamResponse:
        if fault.status is not None:
            return await self._respond(parsed, _fault_response(fault, fault.status, parsed.request_id))
        if fault.truncate is not None and response is not None:
            return await _send_truncated(parsed.request, response, fault.truncate)
        if fault.close or fault.stall is not None:
            await self._pause(fault.stall)
            return _close_connection(parsed.request)
        return await self._respond(parsed, response or await self._execute(parsed))

    async def _execute(self, parsed: _ParsedRequest) -> _Response:
        """Check a request, and carry it out if it stands."""
        try:
            content = self._run_operation(parsed)
        except ApiError as refusal:
            return _json_response(refusal.status, refusal.body(parsed.request_id))
        self._update_record(parsed, executed=True)
        if isinstance(content, PendingReport):
            return _Response(200, await self._report_body(content, parsed.request_id), dict(_JSON))
        if isinstance(content, bytes):
            # Only here the id is in a header: there is no body to hold it.
            return _Response(
                200, content, {"Content-Type": "application/pdf", "Plaid-Request-ID": parsed.request_id}
            )
        content["request_id"] = parsed.request_id
        return _json_response(200, content)

    async def _report_body(self, draft: PendingReport, request_id: str) -> bytes:
        if draft.outline.record_count < _THREAD_MIN_RECORDS:
            return finish_body(render_unfinished_body(draft.outline, insights=draft.insights), request_id)
        body = await asyncio.to_thread(self._cached_body, draft.outline, insights=draft.insights)
        return finish_body(body, request_id)

    def _run_operation(self, parsed: _ParsedRequest) -> OperationResult:
        request = parsed.request
        operation = OPERATIONS.get(request.path)
        if operation is None or request.method != "POST":
            raise ApiError("NOT_FOUND")
        if request.content_type != "application/json":
            raise ApiError("INVALID_HEADERS")
        if parsed.body is None:
            raise ApiError("INVALID_BODY")
        client_id = check_credentials(
            parsed.credential("client_id", "PLAID-CLIENT-ID"),
            parsed.credential("secret", "PLAID-SECRET"),
            self._clients,
        )
        check_version(request.headers.get("Plaid-Version"))
        check_fields(operation.fields, parsed.body)
        return operation.handler(OperationRequest(self._world, client_id, parsed.request_id, parsed.body))

    def _update_record(self, parsed: _ParsedRequest, **changes: Any) -> None:
        if parsed.number in self._received:
            self._received[parsed.number] = evolve(self._received[parsed.number], **changes)

    async def _respond(self, parsed: _ParsedRequest, response: _Response) -> web.StreamResponse:
        self._update_record(parsed, status=response.status)
        return await _send_response(parsed.request, response)

    async def _pause(self, seconds: float | None) -> None:
        """Wait; if the simulator closes meanwhile, the request ends there and is not acted upon."""
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return
        raise ConnectionAbortedError

    # Its own two paths

    async def _route_control(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/_simulator/ledger":
                return await self._send_ledger(request)
            case "POST", "/_simulator/faults":
                return await _send_response(request, self._replace_script(await request.read()))
        error = "there are GET /_simulator/ledger and POST /_simulator/faults"
        return await _send_response(request, _json_response(404, {"error": error}))

    def _replace_script(self, raw: bytes) -> _Response:
        try:
            faults = parse_faults(_parse_object(raw))
        except ValueError as error:
            return _json_response(400, {"error": str(error)})
        self._script.clear()
        self._script.add(faults)
        return _json_response(200, {"faults": len(faults)})

    async def _send_ledger(self, request: web.BaseRequest) -> web.StreamResponse:
        """JSON Lines, a thousand at a time, of the tokens that there are when it is asked for."""
        answer = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await answer.prepare(request)
        length = len(self.ledger)
        for start in range(0, length, 1_000):
            entries = self.ledger[start : min(start + 1_000, length)]
            await answer.write("".join(f"{json.dumps(entry)}\n" for entry in entries).encode())
        await answer.write_eof()
        return answer


def _parse_object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):  # bytes that are no UTF-8 included, and a thousand brackets
        return None
    return body if isinstance(body, dict) else None


async def _prepare_response(request: web.BaseRequest, response: _Response) -> None:
    """Add what the request's headers call for; Plaid echoes the version, and zips where that is taken."""
    version = request.headers.get("Plaid-Version")
    if version in API_VERSIONS:
        response.headers["Plaid-Version"] = version
    if len(response.body) >= _GZIP_MIN_BYTES and "gzip" in request.headers.get("Accept-Encoding", ""):
        if len(response.body) < _THREAD_MIN_BYTES:
            response.body = _gzip(response.body)
        else:
            response.body = await asyncio.to_thread(_gzip, response.body)
        response.headers["Content-Encoding"] = "gzip"


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1, mtime=0)


async def _send_response(request: web.BaseRequest, response: _Response) -> web.Response:
    await _prepare_response(request, response)
    return web.Response(status=response.status, body=response.body, headers=response.headers)


async def _send_truncated(request: web.BaseRequest, response: _Response, length: int) -> web.StreamResponse:
    await _prepare_response(request, response)
    answer = web.StreamResponse(status=response.status, headers=response.headers)
    answer.content_length = len(response.body)
    await answer.prepare(request)
    await answer.write(response.body[:length])
    return _close_connection(request)


def _close_connection(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection, once what is written has left; the answer that aiohttp wants goes nowhere."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()
