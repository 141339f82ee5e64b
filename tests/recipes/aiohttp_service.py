from collections.abc import AsyncIterator

from aiohttp import web
from relay import Create, error_response, open_relay

from plaid_relay_async import PlaidRelayError

CREATE: web.AppKey[Create] = web.AppKey("create")


async def relay(app: web.Application) -> AsyncIterator[None]:
    async with open_relay() as create:
        app[CREATE] = create
        yield


async def share(request: web.Request) -> web.Response:
    create, path = request.app[CREATE], request.match_info
    try:
        relay_token = await create(path["report_id"], path["partner_id"])
    except (PlaidRelayError, TimeoutError) as error:
        status, headers, body = error_response(error)
        return web.json_response(body, status=status, headers=headers)
    return web.json_response({"relay_token": relay_token})


app = web.Application()
app.cleanup_ctx.append(relay)
app.router.add_post("/reports/{report_id}/partners/{partner_id}", share)
