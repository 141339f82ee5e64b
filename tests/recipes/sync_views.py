"""A synchronous view under ASGI, which uses the client in the server's event loop."""

from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIRequest
from django.http import JsonResponse
from relay import error_response

from plaid_relay_async import PlaidRelayError


def share(request: ASGIRequest, report_id: str, partner_id: str) -> JsonResponse:
    create = async_to_sync(request.scope["state"]["create"])
    try:
        relay_token = create(report_id, partner_id)
    except (PlaidRelayError, TimeoutError) as error:
        status, headers, body = error_response(error)
        return JsonResponse(body, status=status, headers=headers)
    return JsonResponse({"relay_token": relay_token})
