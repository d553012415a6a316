"""The paths under which a report is found."""

from uuid import UUID


def status_path(report_id: UUID) -> str:
    """Where it tells how it stands."""
    return f"/api/reports/{report_id}/status"


def download_path(report_id: UUID) -> str:
    """Where its file is."""
    return f"/api/reports/{report_id}/download"
