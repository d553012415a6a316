"""Run the database service: ``python -m database_service``."""

from common.http.runtime import run_service
from database_service.app import build_app
from database_service.settings import Settings

if __name__ == "__main__":
    run_service("database_service", Settings, build_app)
