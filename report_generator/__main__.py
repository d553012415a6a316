"""Run the report generator: ``python -m report_generator``."""

from common.http.runtime import run_service
from report_generator.app import build_app
from report_generator.settings import Settings

if __name__ == "__main__":
    run_service("report_generator", Settings, build_app)
