"""The templates and the data each needs; checked on request, and again before it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from common.contracts.notifications import Template
from common.contracts.reports import ReportName
from common.contracts.rules import Text
from common.errors import FieldError, PermanentError


class TemplateDataMissingError(PermanentError):
    """The request lacks a value that its template needs, or gives one that cannot be used."""

    code = "template_data_missing"
    http_status = 422
    title = "The template needs other data"


WebAddress = Annotated[
    Text, StringConstraints(max_length=2000, pattern=r"^https?://[^\s/?#]+[^\s]*$")
]
"""A link to put into a mail: http or https, so that it never runs anything."""


class TemplateData(BaseModel):
    """Base of the data of templates; unknown fields are ignored, as in every message."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)

    def placeholders(self) -> dict[str, str]:
        """Every ``{{ name }}`` that the template may use, as text."""
        return {}


class NoData(TemplateData):
    """For mails that are the same for every recipient."""


class ReportReadyData(TemplateData):
    """A report that can be downloaded."""

    report_name: ReportName
    record_count: Annotated[int, Field(ge=0, le=2**63 - 1)]
    download_url: WebAddress

    def placeholders(self) -> dict[str, str]:
        """The count as people read it."""
        rows = "1 row" if self.record_count == 1 else f"{self.record_count:,} rows"
        return {"report_name": self.report_name, "rows": rows, "download_url": self.download_url}


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """A template's data, subject and sample."""

    subject: str
    """With placeholders."""

    data: type[TemplateData] = NoData
    sample: Mapping[str, Any] = field(default_factory=dict)
    """What the preview shows."""


TEMPLATES = {
    Template.WELCOME: TemplateSpec("Welcome to {{ brand }}"),
    Template.ALREADY_REGISTERED: TemplateSpec("You are already registered with {{ brand }}"),
    Template.REPORT_READY: TemplateSpec(
        "Your report is ready: {{ report_name }}",
        ReportReadyData,
        {
            "reportName": "New users in January",
            "recordCount": 1815,
            "downloadUrl": "http://localhost:8084/api/reports/"
            "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f/download",
        },
    ),
}
"""A new mail: a name in ``Template``, a line here, and its two files in ``templates/``."""


def read_data(template: Template, data: Mapping[str, Any]) -> TemplateData:
    """Validate the data of a request against its template.

    Raises:
        TemplateDataMissingError: Naming each field.
    """
    try:
        return TEMPLATES[template].data.model_validate(data)
    except ValidationError as error:
        problems = tuple(
            FieldError("/data/" + "/".join(map(str, item["loc"])), item["msg"])
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        )
    names = ", ".join(problem.pointer.removeprefix("/data/") for problem in problems)
    raise TemplateDataMissingError(
        f"The template {template.value} cannot be filled in: look at {names}.", errors=problems
    )
