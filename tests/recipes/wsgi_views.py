from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST
from relay import error_response
from relay_thread import RelayThread

from plaid_relay_async import PlaidRelayError

relay = RelayThread()


@require_POST
def share(request: HttpRequest, report_id: str, partner_id: str) -> JsonResponse:
    try:
        relay_token = relay.create(report_id, partner_id)
    except (PlaidRelayError, TimeoutError) as error:
        status, headers, body = error_response(error)
        return JsonResponse(body, status=status, headers=headers)
    return JsonResponse({"relay_token": relay_token})
