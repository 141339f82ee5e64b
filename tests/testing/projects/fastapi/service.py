from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Request

from plaid_relay_async import OutcomeUnknownError, RelayClient


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with RelayClient() as app.state.plaid:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/partners/{partner_id}/token")
async def share(
    partner_id: str, report_token: Annotated[str, Body(embed=True)], request: Request
) -> dict[str, str]:
    try:
        created = await request.app.state.plaid.relay.create([report_token], partner_id)
    except OutcomeUnknownError:
        raise HTTPException(502, "a token may exist, so don't repeat the request") from None
    return {"relay_token": created.relay_token}
