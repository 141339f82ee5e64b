"""Handlers that report whether they were cancelled, in each framework."""

import asyncio
import os
import sys

from aiohttp import web
from django.http import HttpRequest, HttpResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PATH = "/reports/report-1/partners/ada"


def report(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def wait() -> None:
    report("started")
    try:
        await asyncio.sleep(float(os.environ["SECONDS"]))
    except asyncio.CancelledError:
        report("cancelled")
        raise
    report("completed")


async def respond(request: Request) -> Response:
    await wait()
    return Response()


async def stream(request: Request) -> Response:
    async def body():
        yield b"x"
        await wait()

    return StreamingResponse(body())


async def pass_on(request, call_next):
    return await call_next(request)


middleware = [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]
starlette = Starlette(routes=[Route(PATH, respond, methods=["POST"])])
with_middleware = Starlette(routes=[Route(PATH, respond, methods=["POST"])], middleware=middleware)
streaming = Starlette(routes=[Route(PATH, stream, methods=["POST"])])


async def view(request: HttpRequest, **_: str) -> HttpResponse:
    await wait()
    return HttpResponse()


def synchronous_middleware(get_response):
    def respond_to(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    return respond_to


async def respond_with_aiohttp(request: web.Request) -> web.Response:
    await wait()
    return web.Response()


app = web.Application()
app.router.add_post(PATH, respond_with_aiohttp)
