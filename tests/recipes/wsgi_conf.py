worker_class = "gthread"
workers = 2
threads = 10
graceful_timeout = 60


def post_worker_init(worker):
    from wsgi_views import relay

    relay.start()


def worker_exit(server, worker):
    from wsgi_views import relay

    relay.close()
