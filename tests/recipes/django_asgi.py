"""Django alone, without the client and its journal."""

from django.core.asgi import get_asgi_application

application = get_asgi_application()
