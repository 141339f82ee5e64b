from asgiref.sync import async_to_sync
from django.http import HttpRequest, JsonResponse

from plaid_relay_async import RelayClient


async def create_token(report_token: str, partner_id: str) -> str:
    async with RelayClient() as client:
        return (await client.relay.create([report_token], partner_id)).relay_token


def share(request: HttpRequest, partner_id: str) -> JsonResponse:
    relay_token = async_to_sync(create_token)(request.POST["report_token"], partner_id)
    return JsonResponse({"relay_token": relay_token})
