"""Run the receiver: ``python -m queue_receiver``."""

from common.http.runtime import run_service
from queue_receiver.app import build_app
from queue_receiver.settings import Settings

if __name__ == "__main__":
    run_service("queue_receiver", Settings, build_app)
