from datetime import date

import pytest

from report_generator.downloads import content_disposition, file_name


@pytest.mark.parametrize(
    ("report_name", "expected"),
    [
        ("users", "users-2026-11-21.csv"),
        ("Q1 (final)", "Q1 (final)-2026-11-21.csv"),
        (".hidden", "hidden-2026-11-21.csv"),
        ("..", "report-2026-11-21.csv"),
    ],
)
def test_a_file_is_named_after_report_and_day(report_name: str, expected: str) -> None:
    assert file_name(report_name, date(2026, 11, 21)) == expected


def test_a_plain_name_is_sent_as_it_is() -> None:
    assert content_disposition("users-1.csv") == 'attachment; filename="users-1.csv"'


def test_a_name_beyond_ascii_is_sent_in_both_forms() -> None:
    assert content_disposition("Größe.csv") == (
        "attachment; filename=\"Gr__e.csv\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.csv"
    )


def test_a_name_can_not_break_out_of_the_header() -> None:
    header = content_disposition('a"; x="\r\nSet-Cookie: b\\.csv')

    assert header.startswith('attachment; filename="a_; x=___Set-Cookie: b_.csv"; filename*=')
    assert "\n" not in header
