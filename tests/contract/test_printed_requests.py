"""Requests as the project's first documents print them; people have programs that send these."""

from typing import Any

import pytest
from pydantic import BaseModel

from common.contracts.base import Body
from common.contracts.notifications import NotificationRequest, Template
from common.contracts.registrations import RegistrationRequest, RegistrationSubmitted
from common.contracts.reports import (
    Column,
    ReportListQuery,
    ReportRequest,
    ReportRequested,
    UserReportQuery,
)
from common.contracts.users import UserListQuery, UserRequest, UserUpdate
from common.http.validation import validate

JOHN = {"name": "John", "surname": "Doe", "email": "john.doe@example.com"}
SPAN = {"startDate": "2025-01-01", "endDate": "2025-12-31"}
REPORT = {
    **SPAN,
    "includeColumns": ["name", "surname", "email", "created_at"],
    "format": "csv",
}
MAIL = {
    "to": "user@example.com",
    "subject": "Welcome to UserStream",
    "template": "welcome",
    "data": {"name": "John", "surname": "Doe"},
}


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        (RegistrationRequest, JOHN),
        (RegistrationSubmitted, {**JOHN, "timestamp": "2025-12-13T19:37:00.000Z"}),
        (NotificationRequest, MAIL),
        (UserRequest, JOHN),
        (UserUpdate, {"name": "John", "surname": "Doe"}),
        (UserListQuery, {"page": "1", "limit": "50"}),
        (UserReportQuery, SPAN),
        (ReportRequest, SPAN),
        (ReportRequest, REPORT),
        (ReportRequested, REPORT),
        (ReportListQuery, {"page": "1", "limit": "20"}),
    ],
)
def test_a_printed_request_is_accepted(model: type[BaseModel], printed: dict[str, Any]) -> None:
    assert validate(model, printed)


@pytest.mark.parametrize("model", [ReportRequest, ReportRequested])
def test_columns_are_understood_under_their_printed_names(
    model: type[ReportRequest | ReportRequested],
) -> None:
    wanted = [Column.NAME, Column.SURNAME, Column.EMAIL, Column.CREATED_AT]

    assert model.model_validate(REPORT).columns == wanted
    assert model.model_validate({"columns": ["name", "surname", "email", "createdAt"]}) == (
        model.model_validate({"includeColumns": ["name", "surname", "email", "created_at"]})
    )
    assert UserReportQuery(columns="id, created_at").column_list == [Column.ID, Column.CREATED_AT]


def test_a_request_for_a_mail_keeps_what_was_printed() -> None:
    request = validate(NotificationRequest, MAIL)

    assert isinstance(request, Body)
    assert (request.template, request.subject) == (Template.WELCOME, "Welcome to UserStream")
