"""Run the sender: ``python -m sender``."""

from common.http.runtime import run_service
from sender.app import build_app
from sender.settings import Settings

if __name__ == "__main__":
    run_service("sender", Settings, build_app)
