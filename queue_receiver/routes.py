"""What the receiver answers over HTTP: for now, health and documentation alone."""

from common.http.api import Api

api = Api()
