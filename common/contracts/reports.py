"""A report: the request, its record, and which rows and columns it holds."""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)

from common.contracts.base import Answer, Body, Contract
from common.contracts.rules import MAX_BIGINT, EmailAddress, Instant, Text
from common.contracts.topology import REPORT_REQUESTS, Route


class Format(StrEnum):
    """File formats of a report."""

    CSV = "csv"


class Column(StrEnum):
    """Columns of a report of users; the default is all, in this order."""

    ID = "id"
    NAME = "name"
    SURNAME = "surname"
    EMAIL = "email"
    CREATED_AT = "createdAt"
    UPDATED_AT = "updatedAt"

    @classmethod
    def _missing_(cls, value: object) -> "Column | None":
        """Also take the names that the columns have in the table: ``created_at``."""
        return _NAMES_IN_THE_TABLE.get(value) if isinstance(value, str) else None

    @property
    def heading(self) -> str:
        """The text of the header line."""
        return _HEADINGS[self]


_NAMES_IN_THE_TABLE = {column.name.lower(): column for column in Column}

_HEADINGS = {
    Column.ID: "ID",
    Column.NAME: "Name",
    Column.SURNAME: "Surname",
    Column.EMAIL: "Email",
    Column.CREATED_AT: "Created At",
    Column.UPDATED_AT: "Updated At",
}


def _distinct(columns: list[Column]) -> list[Column]:
    if len(set(columns)) != len(columns):
        raise ValueError("Each column can be named once.")
    return columns


Columns = Annotated[
    list[Column],
    Field(min_length=1, max_length=len(Column), json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
ReportName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[\p{L}\p{M}\p{N}_ .()-]+$")
]
"""Also the file's name when it is downloaded."""

Delimiter = Annotated[str, StringConstraints(pattern=r"^[,;|\t]$")]
QuoteCharacter = Annotated[str, StringConstraints(pattern=r"""^["']$""")]


def _written_as_a_day(value: object) -> date:
    """Parse a text, as pydantic does not when strict; refuse numbers (seconds since 1970)."""
    if isinstance(value, date):
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError("Write a day like 2026-01-31.")


_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Day = Annotated[date, BeforeValidator(_written_as_a_day)]
"""A day in UTC, as ISO 8601 writes it."""


def _check_range(start: date | None, end: date | None) -> None:
    if start and end and end < start:
        raise ValueError("The end date lies before the start date.")


class ReportWishes(BaseModel):
    """What a report holds; everything may be left out."""

    report_name: ReportName = "users"
    format: Format = Format.CSV
    start_date: Day | None = None
    """First day of ``created_at``, UTC, inclusive."""

    end_date: Day | None = None
    """Last day of ``created_at``, UTC, inclusive: the whole day counts."""

    columns: Columns = Field(
        default=list(Column),
        validation_alias=AliasChoices("columns", "includeColumns"),
        json_schema_extra={
            "description": "Also read as `includeColumns`; `created_at` and `updated_at` are "
            "other names of the last two columns."
        },
    )
    recipient: EmailAddress | None = None
    """Address that gets a link when the report is ready."""

    @model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        _check_range(self.start_date, self.end_date)
        return self


class ReportRequest(ReportWishes, Body):
    """What ``POST /api/reports/generate`` takes."""

    sample: ClassVar[Mapping[str, Any]] = {
        "reportName": "users",
        "format": "csv",
        "startDate": "2026-01-01",
        "endDate": "2026-01-31",
        "columns": ["id", "email"],
    }


class ReportRequested(ReportWishes, Contract):
    """A report is to be made; its ``message_id`` is the report's id."""

    type_name: ClassVar[str] = "report.requested.v1"
    route: ClassVar[Route] = REPORT_REQUESTS
    is_default: ClassVar[bool] = True
    sample: ClassVar[Mapping[str, Any]] = ReportRequest.sample


class ReportAccepted(Answer):
    """The request is safe at the broker."""

    report_id: UUID
    status_url: str
    download_url: str


class ReportStatus(StrEnum):
    """How a report stands."""

    REQUESTED = "requested"
    GENERATING = "generating"
    READY = "ready"
    FAILED = "failed"


class ReportState(Answer):
    """The status of a report, and its facts once it is ready."""

    report_id: UUID
    report_name: str
    format: Format
    status: ReportStatus
    record_count: int | None = None
    """Without the header."""

    size_bytes: int | None = None
    sha256: str | None = None
    error_message: str | None = None
    """The last failure; with ``requested``, it is tried again."""

    requested_at: Instant
    generated_at: Instant | None = None


class ReportRecord(ReportState):
    """One report as the database has it."""

    file_path: str | None = None
    """Name of the file in the output directory; never a path from outside."""


class ReportProgress(ReportState):
    """One report as its reader sees it."""

    download_url: str | None = None
    """Only when it is ready."""


class ReportPage(Answer):
    """One page of reports as people see them, newest first."""

    reports: list[ReportProgress]
    next_after: UUID | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class ReportRecordRequest(Body):
    """Creates the record of a report; the same id again changes nothing."""

    sample: ClassVar[Mapping[str, Any]] = {
        "reportId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "reportName": "users",
        "format": "csv",
        "requestedAt": "2026-01-31T09:30:00Z",
    }

    report_id: UUID
    report_name: ReportName
    format: Format
    requested_at: Instant


class ReportRecordUpdate(Body):
    """What became of a report."""

    sample: ClassVar[Mapping[str, Any]] = {
        "status": "failed",
        "errorMessage": "There was no room for the file.",
    }

    status: ReportStatus
    record_count: Annotated[int, Field(ge=0, le=MAX_BIGINT)] | None = None
    file_path: Annotated[Text, StringConstraints(max_length=200)] | None = None
    size_bytes: Annotated[int, Field(ge=0, le=MAX_BIGINT)] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    error_message: Annotated[Text, StringConstraints(max_length=500)] | None = None


class ReportList(Answer):
    """One page of reports, newest first."""

    reports: list[ReportRecord]
    next_after: UUID | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class ReportListQuery(Body):
    """Which page of reports."""

    after: UUID | None = None
    page: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


_COLUMN_NAMES = "^ *({0}) *(, *({0}) *)*$".format(
    "|".join(dict.fromkeys([*Column, *_NAMES_IN_THE_TABLE]))
)


class UserReportQuery(Body):
    """Which users, and how they are written (``GET /api/users/report``)."""

    start_date: Day | None = None
    end_date: Day | None = None
    columns: Annotated[str, Field(json_schema_extra={"pattern": _COLUMN_NAMES})] | None = None
    """Names separated by commas; without it, all."""

    format: Format = Format.CSV
    delimiter: Delimiter = ","
    quote: QuoteCharacter = '"'
    header: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.start_date, self.end_date)
        _ = self.column_list
        return self

    @property
    def column_list(self) -> list[Column]:
        """The chosen columns in order.

        Raises:
            ValueError: A name is unknown or comes twice.
        """
        if self.columns is None:
            return list(Column)
        try:
            return _distinct([Column(name.strip()) for name in self.columns.split(",")])
        except ValueError as error:
            raise ValueError(f"Columns are: {', '.join(Column)}; each once.") from error
