worker_class = "uvicorn_worker.UvicornWorker"
workers = 2
graceful_timeout = 60  # seconds: more than the 45 of a creation and the 10 of its drain
