"""Run the frontend: ``python -m frontend``."""

from common.http.runtime import run_service
from frontend.app import build_app
from frontend.settings import Settings

if __name__ == "__main__":
    run_service("frontend", Settings, build_app)
