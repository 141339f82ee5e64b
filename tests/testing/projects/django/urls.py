from django.urls import path
from views import share

urlpatterns = [path("partners/<str:partner_id>/token", share)]
