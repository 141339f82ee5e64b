"""The responses: their content, their headers and compression, and how they are sent."""

import asyncio
import gzip
import json

from aiohttp import web
from attrs import define, field

from plaid_relay_async.simulator.api_errors import error_for_status
from plaid_relay_async.simulator.checks import API_VERSIONS
from plaid_relay_async.simulator.faults import Fault

_GZIP_MIN_BYTES = 1_000
# A bigger response is compressed in a thread: at this limit, that takes 5 ms.
_THREAD_MIN_BYTES = 500_000
JSON_HEADERS = {"Content-Type": "application/json"}


@define
class Response:
    """A response that is not sent yet."""

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(factory=dict, repr=False)


def json_response(status: int, content: object) -> Response:
    """Return a response with JSON."""
    return Response(status, json.dumps(content).encode(), dict(JSON_HEADERS))


def fault_response(fault: Fault, status: int, request_id: str) -> Response:
    """Return the response that a fault describes."""
    headers = {name.title(): value for name, value in fault.headers.items()}
    code = fault.body.get("error_code") if isinstance(fault.body, dict) else None
    error_body = error_for_status(status, code).body(request_id)
    if isinstance(fault.body, str):
        return Response(status, fault.body.encode(errors="replace"), {"Content-Type": "text/html"} | headers)
    if fault.body is None and status < 400:
        return Response(status, b"", headers)
    content = error_body if fault.body is None else fault.body
    # An object without these fields isn't an error of Plaid's, but that of a proxy. It is sent unchanged.
    if isinstance(content, dict) and content.keys() & {"error_code", "error_type"}:
        content = error_body | content
    response = json_response(status, content)
    response.headers |= headers
    return response


async def _prepare_response(request: web.BaseRequest, response: Response) -> None:
    """Echo the request's API version and compress the body if the client accepts it, as Plaid does."""
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
    # Without a time in the header, the same body leads to the same bytes.
    return gzip.compress(body, compresslevel=1, mtime=0)


async def build_response(request: web.BaseRequest, response: Response) -> web.Response:
    """Return a response as aiohttp sends it."""
    await _prepare_response(request, response)
    return web.Response(status=response.status, body=response.body, headers=response.headers)


async def send_truncated(request: web.BaseRequest, response: Response, length: int) -> web.StreamResponse:
    """Send the first bytes of a response's body, and close the connection."""
    await _prepare_response(request, response)
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(response.body)
    await stream.prepare(request)
    await stream.write(response.body[:length])
    return close_connection(request)


def close_connection(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection after the bytes written so far; the returned response is never sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()
