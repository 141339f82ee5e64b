"""The HTTP server: it validates and executes requests, and applies scripted faults.

A request passes these steps: the base latency, the rate limits, the choice of a fault, then validation and
execution by the operation's handler, and the response or the fault's effect. `deliveries` sends the webhooks.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from plaid_relay_async.simulator.api_errors import ApiError
from plaid_relay_async.simulator.checks import check_credentials, check_fields, check_version
from plaid_relay_async.simulator.deliveries import Deliveries
from plaid_relay_async.simulator.faults import (
    CONTROL_PREFIX,
    Fault,
    FaultScript,
    WebhookFault,
    parse_faults,
)
from plaid_relay_async.simulator.limits import Limit, RateLimitedError, RequestLimiter
from plaid_relay_async.simulator.operations import (
    OPERATIONS,
    OperationRequest,
    OperationResult,
    PendingReport,
)
from plaid_relay_async.simulator.requests import (
    ParsedRequest,
    ReceivedRequest,
    RequestLog,
    is_loopback,
    parse_object,
)
from plaid_relay_async.simulator.responses import (
    JSON_HEADERS,
    Response,
    build_response,
    close_connection,
    fault_response,
    json_response,
    send_truncated,
)
from plaid_relay_async.simulator.samples import finish_body, render_unfinished_body
from plaid_relay_async.simulator.webhooks import sign_webhook
from plaid_relay_async.simulator.world import Ledger, World

_MAX_RECORDED_REQUESTS = 10_000
_SHUTDOWN_TIMEOUT = 0.4  # seconds; aiohttp waits twice, for handlers to end and for their cancellation
# A bigger report is encoded in a thread: at this limit, that takes up to 40 ms.
_THREAD_MIN_RECORDS = 1_000
_CACHED_BODIES = 4  # of these big reports
_MAX_ADVANCE = 1e9
_NOT_STARTED = "this simulator is not started: use `async with`, or await its start()"


class Simulator:
    """A local simulator of Plaid's API, which listens only on 127.0.0.1.

    Use it as an async context manager, or call `start` and `close`. Its tokens look like those of Plaid's
    sandbox, and are not valid at Plaid.

    It sends webhooks to URLs of this machine, such as `http://127.0.0.1:8080/plaid`, and to no others. They
    are signed, which requires the extra `webhooks`; without it, none are sent and a warning is logged.

    Args:
        port: port to listen on; 0 picks a free port.
        clients: the secret of each client_id; None accepts any non-empty credentials.
        reports: tokens of reports that are ready from the start and that every client may use.
        generation_delay: seconds until a new report is ready.
        faults: the first rules of the fault script.
        limits: rate limits, which can't be changed later; default: none.
        seed: seed of the reports' content, and of the random numbers for a fault's `rate`.
        latency: seconds before a request to Plaid's paths is handled, or a function that returns them for
            each request.
        transactions: number of transactions in a report that is created here, distributed over its accounts;
            None is twenty per account. With more than 15,000, generation fails, as at Plaid.
        clock: returns monotonic time in seconds. Reports become ready, public tokens expire, rate limits are
            counted and webhooks are repeated by it. `advance` moves it forward.

    Attributes:
        counts: number of requests to each of Plaid's paths.
        rate_limited: number of requests to each path that exceeded a rate limit.
        world: the state, for tests that create much of it without HTTP.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        clients: Mapping[str, str] | None = None,
        reports: Iterable[str] = (),
        generation_delay: float = 0.5,
        faults: Iterable[Fault | WebhookFault] = (),
        limits: Iterable[Limit] = (),
        seed: int = 0,
        latency: Callable[[], float] | float = 0.0,
        transactions: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._clients = None if clients is None else dict(clients)
        self._limits = tuple(limits)
        self._seed = seed
        self._new_world = partial(
            World, generation_delay=generation_delay, transactions=transactions, seed=seed, clock=clock
        )
        self._runner: web.ServerRunner | None = None
        self._closing = asyncio.Event()
        self._set_initial_state(reports, faults, latency)

    def _set_initial_state(
        self,
        reports: Iterable[str],
        faults: Iterable[Fault | WebhookFault],
        latency: Callable[[], float] | float,
    ) -> None:
        self._latency = latency
        self.world = self._new_world()
        # Not a decorated method: each simulator has its own cache, which is freed with it.
        self._cached_body = lru_cache(_CACHED_BODIES)(render_unfinished_body)
        self._script: FaultScript[Fault] = FaultScript(self._seed)
        self._deliveries = Deliveries(self.world, self._seed)
        self.fail(*faults)
        self._limiter = RequestLimiter(self._limits, self.world.time)
        self._log = RequestLog(_MAX_RECORDED_REQUESTS)
        self.counts: Counter[str] = Counter()
        self.rate_limited: Counter[str] = Counter()
        for token in reports:
            self.world.add_report(token)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the server; it can be started again after `close`, with the same state.

        Raises:
            RuntimeError: the simulator has been started already.
            OSError: the port is in use.
        """
        if self._runner is not None:
            raise RuntimeError("this simulator has been started already")
        # The event of an earlier start is still set, and would end every pause.
        self._closing = asyncio.Event()
        runner = web.ServerRunner(
            web.Server(self._serve_request, access_log=None), shutdown_timeout=_SHUTDOWN_TIMEOUT
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except OSError:
            # close() only knows the runner of a server that has started.
            await runner.cleanup()
            raise
        self._runner = runner
        self._deliveries.start()

    async def close(self) -> None:
        """Stop the server: end stalled requests, close all connections and free the port.

        The state can still be read. Webhooks that have not been delivered are sent after another `start`.
        """
        runner, self._runner = self._runner, None
        await self._deliveries.close()
        if runner is not None:
            self._closing.set()
            await runner.cleanup()

    async def reset(
        self,
        *,
        reports: Iterable[str] = (),
        faults: Iterable[Fault | WebhookFault] = (),
        latency: Callable[[], float] | float = 0.0,
    ) -> None:
        """Replace the state by that of a new simulator, at the same address and with the same other settings.

        Requests that wait, because of a latency or a stall, end without a response, and are not executed.

        Args:
            reports: as for a new simulator.
            faults: as for a new simulator.
            latency: as for a new simulator.
        """
        await self._deliveries.close()
        # From here on there is no await: no request can see a part of the new state.
        self._closing.set()
        self._closing = asyncio.Event()
        self._set_initial_state(reports, faults, latency)
        if self._runner is not None:
            self._deliveries.start()

    @property
    def url(self) -> str:
        """The base URL, such as `http://127.0.0.1:8080`.

        Raises:
            RuntimeError: the simulator is not started.
        """
        if self._runner is None:
            raise RuntimeError(_NOT_STARTED)
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def ledger(self) -> Ledger:
        """One entry for each relay token ever issued, in order; a live view."""
        return self.world.ledger

    @property
    def refreshes(self) -> Sequence[tuple[str, str]]:
        """The relay token and the new `asset_report_id` of each refresh of a relay token, in order."""
        return tuple(self.world.refreshes)

    @property
    def requests(self) -> Sequence[ReceivedRequest]:
        """The last 10,000 requests to Plaid's paths, in the order in which they arrived."""
        return self._log.records

    @property
    def webhooks(self) -> Sequence[Mapping[str, str]]:
        """Those of `sent_webhooks` that `/sandbox/item/fire_webhook` has fired.

        Each has `webhook_type`, `webhook_code`, `item_id`, the Item's webhook `url`, and the `request_id` of
        the response.
        """
        return tuple(
            {
                "webhook_type": webhook.payload["webhook_type"],
                "webhook_code": webhook.payload["webhook_code"],
                "item_id": webhook.item_id,
                "url": webhook.url,
                "request_id": webhook.request_id,
            }
            for webhook in self.world.webhooks
            if webhook.item_id is not None and webhook.request_id is not None
        )

    @property
    def sent_webhooks(self) -> Sequence[Mapping[str, Any]]:
        """All webhooks of the last seven days, at most 10,000, in order.

        Each has the fields of `/beta/webhook_events/list`, the `client_id` that registered the URL, and
        `error`: why the last attempt failed, or why there was none.
        """
        return tuple(
            {**webhook.to_event(self.world.time), "client_id": webhook.client_id, "error": webhook.error}
            for webhook in self.world.webhooks
        )

    def add_report(
        self,
        token: str | None = None,
        *,
        transactions: int | None = None,
        days: int = 60,
        investments: bool = False,
        missing: Collection[str] = (),
    ) -> str:
        """Add a report that is ready and that every client may use, and return its token.

        Args:
            token: the token; by default a new one.
            transactions: number of transactions, distributed over the accounts; None is twenty per account.
            days: number of days, 0 to 731.
            investments: whether the report has investment accounts.
            missing: parts that are missing from the report, with a warning for each: any of `owners`,
                `transactions`, `investments`.

        Raises:
            ValueError: an argument is out of range.
        """
        return self.world.add_report(
            token, transactions=transactions, days=days, investments=investments, missing=missing
        )

    def break_item(
        self, access_token: str, error_code: str = "ITEM_LOGIN_REQUIRED", *, part: str | None = None
    ) -> None:
        """Make an Item fail, for reports that are not ready yet and for later ones.

        A report can't be created with an Item that already fails. If an Item fails while a report is being
        generated, the report becomes `DATA_UNAVAILABLE`, unless `require_all_items` is false and another Item
        has not failed.

        Args:
            access_token: the Item's access token.
            error_code: a code of the type ITEM_ERROR or INSTITUTION_ERROR.
            part: the part that fails: one of `owners`, `transactions`, `investments`. It is then missing from
                reports, which have a warning. None makes the Item itself fail.

        Raises:
            ValueError: there is no such Item, code or part.
        """
        self.world.break_item(access_token, error_code, part)

    def repair_item(self, access_token: str) -> None:
        """End the failure of an Item and of its parts, for later reports.

        Raises:
            ValueError: there is no such Item.
        """
        self.world.repair_item(access_token)

    def sign_webhook(self, body: bytes, *, at: float | None = None) -> dict[str, str]:
        """Return the headers with which Plaid would send a webhook, signed with the current webhook key.

        It requires the extra `webhooks`.

        Args:
            body: the body, as it will be sent.
            at: when it is signed, in seconds of Unix time; None is now.
        """
        return sign_webhook(body, at=at, key_id=self.world.webhook_keys.current_id)

    def rotate_webhook_key(self) -> str:
        """Sign webhooks with a new key from now on, and return its ID; earlier keys stay valid."""
        return self.world.webhook_keys.rotate()

    def expire_webhook_key(self, key_id: str, at: float | None = None) -> None:
        """Set the `expired_at` of a webhook key.

        Args:
            key_id: the key's ID.
            at: when it expires, in seconds of Unix time; None is now.

        Raises:
            ValueError: there is no such key.
        """
        self.world.webhook_keys.expire(key_id, at)

    def fail(self, *faults: Fault | WebhookFault) -> None:
        """Add faults to the script, after those in force."""
        self._script.add(fault for fault in faults if isinstance(fault, Fault))
        self._deliveries.add_faults(fault for fault in faults if isinstance(fault, WebhookFault))

    def clear_faults(self) -> None:
        """Remove all faults from the script."""
        self._script.clear()
        self._deliveries.clear_faults()

    @property
    def unused_faults(self) -> Sequence[Fault | WebhookFault]:
        """The faults in the script that have not applied yet, except those with `times=0`."""
        return (*self._script.unused, *self._deliveries.unused_faults)

    async def advance(self, seconds: float = 0.0) -> None:
        """Move the simulator's time forward, and make the attempts to deliver webhooks that become due.

        It takes only as long as the receivers need to respond. The attempts are made in the order of their
        moments, and all attempts of one moment have ended before the next moment. When `advance` returns, no
        attempt is in progress or due. The clocks of receivers are not moved. So what happened before is then
        further in the past: a webhook that was signed before is older for its receiver.

        Args:
            seconds: how far the time is moved. With 0, the attempts that are due now are made.

        Raises:
            ValueError: `seconds` is not from 0 to 1e9.
            RuntimeError: the simulator is not started.
        """
        if not 0 <= seconds <= _MAX_ADVANCE:
            raise ValueError("seconds: must be a number from 0 to 1e9")
        target = self.world.time() + seconds
        while True:
            if self._runner is None:
                raise RuntimeError(_NOT_STARTED)
            await self._deliveries.make_due_attempts()
            moment = self.world.agenda.next_moment()
            if moment is None or moment > target:
                break
            self.world.time.move_to(moment)
        self.world.time.move_to(target)

    # One request

    async def _serve_request(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ConnectionError:
            # The client disconnected, or the simulator is closing. aiohttp would log either as an error.
            return close_connection(request)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if not is_loopback(request.headers.get("Host", "")):
            return await build_response(
                request, json_response(403, {"error": "the Host header must name this machine"})
            )
        if request.path.startswith(CONTROL_PREFIX):
            return await self._route_control(request)
        parsed = self._record_request(request, await request.read())
        await self._pause(self._latency() if callable(self._latency) else self._latency)
        try:
            self._limiter.admit(request.path, parsed.client_id)
        except RateLimitedError as exceeded:
            return await self._reject_over_limit(parsed, exceeded)
        return await self._handle(parsed, self._script.next_fault(request.path, parsed.partner))

    def _record_request(self, request: web.BaseRequest, raw: bytes) -> ParsedRequest:
        self.counts[request.path] += 1
        parsed = ParsedRequest(self.world.new_request_id(), request, parse_object(raw))
        self._log.add(parsed.to_received_request())
        return parsed

    async def _reject_over_limit(
        self, parsed: ParsedRequest, exceeded: RateLimitedError
    ) -> web.StreamResponse:
        self.rate_limited[parsed.request.path] += 1
        error = ApiError("RATE_LIMIT")
        response = json_response(error.status, error.body(parsed.request_id))
        response.headers |= exceeded.headers
        return await self._respond(parsed, response)

    async def _handle(self, parsed: ParsedRequest, fault: Fault | None) -> web.StreamResponse:
        if fault is None:
            return await self._respond(parsed, await self._execute(parsed))
        # Only an executed request has a response that can be truncated.
        if fault.truncate is not None or fault.when == "after":
            response = await self._execute(parsed)
            await self._pause(fault.latency)
        else:
            await self._pause(fault.latency)
            response = None
        return await self._apply_fault(parsed, fault, response)

    async def _apply_fault(
        self, parsed: ParsedRequest, fault: Fault, response: Response | None
    ) -> web.StreamResponse:
        if fault.status is not None:
            return await self._respond(parsed, fault_response(fault, fault.status, parsed.request_id))
        if fault.truncate is not None and response is not None:
            return await send_truncated(parsed.request, response, fault.truncate)
        if fault.close or fault.stall is not None:
            await self._pause(fault.stall)
            return close_connection(parsed.request)
        # The fault's only effect was its latency.
        return await self._respond(parsed, response or await self._execute(parsed))

    async def _execute(self, parsed: ParsedRequest) -> Response:
        """Validate and execute a request; return Plaid's response, which may be an error."""
        try:
            content = self._run_operation(parsed)
        except ApiError as error:
            return json_response(error.status, error.body(parsed.request_id))
        self._log.update(parsed.request_id, executed=True)
        if isinstance(content, PendingReport):
            return Response(200, await self._report_body(content, parsed.request_id), dict(JSON_HEADERS))
        if isinstance(content, bytes):
            # Only a PDF's request_id is in a header, because it has no JSON body.
            return Response(
                200, content, {"Content-Type": "application/pdf", "Plaid-Request-ID": parsed.request_id}
            )
        content["request_id"] = parsed.request_id
        return json_response(200, content)

    async def _report_body(self, report: PendingReport, request_id: str) -> bytes:
        if report.outline.record_count < _THREAD_MIN_RECORDS:
            return finish_body(render_unfinished_body(report.outline, insights=report.insights), request_id)
        body = await asyncio.to_thread(self._cached_body, report.outline, insights=report.insights)
        return finish_body(body, request_id)

    def _run_operation(self, parsed: ParsedRequest) -> OperationResult:
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
        return operation.handler(OperationRequest(self.world, client_id, parsed.request_id, parsed.body))

    async def _respond(self, parsed: ParsedRequest, response: Response) -> web.StreamResponse:
        self._log.update(parsed.request_id, status=response.status)
        return await build_response(parsed.request, response)

    async def _pause(self, seconds: float | None) -> None:
        """Wait for some seconds, if any.

        Raises:
            ConnectionAbortedError: the simulator is closing; the request's connection must be closed.
        """
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return
        raise ConnectionAbortedError

    # The simulator's own paths

    async def _route_control(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/_simulator/ledger":
                return await self._send_ledger(request)
            case "POST", "/_simulator/faults":
                return await build_response(request, self._replace_script(await request.read()))
            case "POST", "/_simulator/advance":
                return await build_response(request, await self._advance(await request.read()))
        error = (
            "not found; the simulator's own paths are GET /_simulator/ledger, POST /_simulator/faults and "
            "POST /_simulator/advance"
        )
        return await build_response(request, json_response(404, {"error": error}))

    def _replace_script(self, raw: bytes) -> Response:
        try:
            faults = parse_faults(parse_object(raw))
        except ValueError as error:
            return json_response(400, {"error": str(error)})
        self.clear_faults()
        self.fail(*faults)
        return json_response(200, {"faults": len(faults)})

    async def _advance(self, raw: bytes) -> Response:
        match parse_object(raw):
            case {"seconds": bool()}:
                pass
            case {"seconds": int() | float() as seconds, **more} if not more and 0 <= seconds <= _MAX_ADVANCE:
                try:
                    await self.advance(seconds)
                except RuntimeError:  # the simulator was closed
                    raise ConnectionAbortedError from None
                return json_response(200, {"seconds": seconds})
        error = 'the body must be an object such as {"seconds": 30}, with a number from 0 to 1e9'
        return json_response(400, {"error": error})

    async def _send_ledger(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send the ledger as JSON Lines, a thousand at a time.

        Tokens that are issued during the response are not included.
        """
        stream = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await stream.prepare(request)
        length = len(self.ledger)
        for start in range(0, length, 1_000):
            entries = self.ledger[start : min(start + 1_000, length)]
            await stream.write("".join(f"{json.dumps(entry)}\n" for entry in entries).encode())
        await stream.write_eof()
        return stream
