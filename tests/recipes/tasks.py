from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from celery.utils.log import get_task_logger
from relay import error_response
from relay_thread import RelayThread

from plaid_relay_async import PlaidRelayError

app = Celery("tasks")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_soft_time_limit=120,
    task_time_limit=180,
)
logger = get_task_logger(__name__)
relay = RelayThread()


@worker_process_init.connect
def start_relay(**_):
    relay.start()


@worker_process_shutdown.connect
def close_relay(**_):
    relay.close()


@app.task(bind=True, max_retries=20)
def share(self, report_id: str, partner_id: str) -> None:
    try:
        relay.create(report_id, partner_id)
    except (PlaidRelayError, TimeoutError) as error:
        status, headers, body = error_response(error)
        if status == 503:
            raise self.retry(countdown=int(headers["Retry-After"])) from None
        logger.warning("report %s isn't shared with %s: %s", report_id, partner_id, body)
