import os
from contextlib import asynccontextmanager

from relay import error_response, open_relay
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plaid_relay_async import PlaidRelayError
from plaid_relay_async.limits import RateLimit, RedisLimiter

LIMITS = {"/credit/relay/create": RateLimit(int(os.environ["RELAY_LIMIT"]))}  # per minute


@asynccontextmanager
async def lifespan(app: Starlette):
    async with (
        RedisLimiter(LIMITS, os.environ["REDIS_URL"], name=os.environ["PLAID_CLIENT_ID"]) as limiter,
        open_relay(rate_limiter=limiter) as create,
    ):
        yield {"create": create}


async def share(request: Request) -> JSONResponse:
    return JSONResponse({"relay_token": await request.state.create(**request.path_params)})


async def respond_to_error(request: Request, error: PlaidRelayError | TimeoutError) -> JSONResponse:
    status, headers, body = error_response(error)
    return JSONResponse(body, status, headers)


app = Starlette(
    routes=[Route("/reports/{report_id}/partners/{partner_id}", share, methods=["POST"])],
    exception_handlers={PlaidRelayError: respond_to_error, TimeoutError: respond_to_error},
    lifespan=lifespan,
)
