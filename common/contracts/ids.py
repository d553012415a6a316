"""Ids that follow from other ids, so that doing a thing again gives it the same name."""

from uuid import UUID, uuid5


def notification_id(cause: UUID, template: str) -> UUID:
    """The id of the mail that ``cause`` (a registration, a report) leads to."""
    return uuid5(cause, template)
