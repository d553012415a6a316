"""Gives every container its own secrets, and no other's.

In compose each reader has a volume of its own: what one service could give away is what
that service needs, and the files may be readable whatever user the image runs as.
"""

import shutil
from pathlib import Path

_BROKER = {"queue_management_url": "management_url"}

DISTRIBUTED: dict[str, dict[str, str]] = {
    "frontend": {
        "queue_url": "frontend.queue_url",
        "registration_id_secret": "registration_id_secret",
        **_BROKER,
    },
    "queue_receiver": {"queue_url": "queue_receiver.queue_url", **_BROKER},
    "sender": {"queue_url": "sender.queue_url", **_BROKER},
    "report_generator": {"queue_url": "report_generator.queue_url", **_BROKER},
    "database_service": {"db_password": "db_password"},
    "postgres": {"db_password": "db_password"},
}
"""Reader to its files, each with the secret (as ``provision`` names it) that goes into it."""


def distribute_secrets(secrets_directory: Path, target: Path) -> None:
    """Copy each reader's secrets into ``target/<reader>``; safe to repeat."""
    for reader, files in DISTRIBUTED.items():
        directory = target / reader
        directory.mkdir(parents=True, exist_ok=True)
        for name, secret in files.items():
            fresh = directory / f".{name}.new"
            shutil.copyfile(secrets_directory / secret, fresh)
            fresh.chmod(0o444)
            fresh.replace(directory / name)
