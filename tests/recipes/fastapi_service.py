from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from relay import Create, error_response, open_relay

from plaid_relay_async import PlaidRelayError


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with open_relay() as create:
        yield {"create": create}


def creator(request: Request) -> Create:
    return request.state.create


app = FastAPI(lifespan=lifespan)


@app.post("/reports/{report_id}/partners/{partner_id}")
async def share(
    report_id: str, partner_id: str, create: Annotated[Create, Depends(creator)]
) -> dict[str, str]:
    return {"relay_token": await create(report_id, partner_id)}


@app.exception_handler(PlaidRelayError)
@app.exception_handler(TimeoutError)
async def respond_to_error(request: Request, error: PlaidRelayError | TimeoutError) -> JSONResponse:
    status, headers, body = error_response(error)
    return JSONResponse(body, status, headers)
