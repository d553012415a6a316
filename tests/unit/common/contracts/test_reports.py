from datetime import date

import pytest
from pydantic import ValidationError

from common.contracts.reports import ReportRequest, ReportRequested, UserReportQuery


@pytest.mark.parametrize("model", [ReportRequest, ReportRequested, UserReportQuery])
def test_a_day_is_taken_as_it_is_written(
    model: type[ReportRequest | ReportRequested | UserReportQuery],
) -> None:
    read = model.model_validate({"startDate": "2026-01-31", "endDate": None})

    assert (read.start_date, read.end_date) == (date(2026, 1, 31), None)
    assert model.model_validate(read.model_dump()) == read


@pytest.mark.parametrize("model", [ReportRequest, ReportRequested, UserReportQuery])
@pytest.mark.parametrize(
    "value", [0, 1.5, True, "0", "1769851200", "2026-01-31T00:00:00", "31.1.2026", "2026-02-30", ""]
)
def test_what_is_no_day_is_refused(
    model: type[ReportRequest | ReportRequested | UserReportQuery], value: object
) -> None:
    with pytest.raises(ValidationError):
        model.model_validate({"endDate": value})
