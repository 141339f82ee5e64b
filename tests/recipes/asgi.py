from django.core.asgi import get_asgi_application
from relay import open_relay

django_application = get_asgi_application()


async def application(scope, receive, send):
    if scope["type"] != "lifespan":
        await django_application(scope, receive, send)
        return
    await receive()
    async with open_relay() as create:
        scope["state"]["create"] = create
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
