from django.core.handlers.asgi import ASGIRequest
from django.http import JsonResponse
from django.views.decorators.http import require_POST
from relay import error_response

from plaid_relay_async import PlaidRelayError


@require_POST
async def share(request: ASGIRequest, report_id: str, partner_id: str) -> JsonResponse:
    try:
        relay_token = await request.scope["state"]["create"](report_id, partner_id)
    except (PlaidRelayError, TimeoutError) as error:
        status, headers, body = error_response(error)
        return JsonResponse(body, status=status, headers=headers)
    return JsonResponse({"relay_token": relay_token})
