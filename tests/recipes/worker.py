"""The tasks, with a folder as the broker, so that the tests need no other server."""

import os

from tasks import app

folder = os.environ["BROKER"]
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}/control",
    },
    task_soft_time_limit=int(os.environ.get("SOFT_TIME_LIMIT", "120")),
)
