"""The WSGI application of the Django services, as Django creates it."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
