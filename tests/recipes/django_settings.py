"""The settings and the URLs of the Django services."""

import os

from django.urls import path
from django.utils.module_loading import import_string

ALLOWED_HOSTS = ["*"]
LOGGING_CONFIG = None
ROOT_URLCONF = "django_settings"
SECRET_KEY = "x"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", *os.environ.get("MIDDLEWARE", "").split()]
urlpatterns = [path("reports/<report_id>/partners/<partner_id>", import_string(os.environ["VIEW"]))]
