import re
from typing import Any

import pytest
from jinja2 import UndefinedError
from pydantic import ValidationError

from common.contracts.notifications import Template
from sender.render import DIRECTORY, Content, Renderer
from sender.template_data import TEMPLATES, TemplateDataMissingError, read_data

RENDERER = Renderer(brand="UserStream")

REPORT = {
    "reportName": "users (1)",
    "recordCount": 1815,
    "downloadUrl": "http://localhost:8084/api/reports/1/download?a=1&b=2",
}


def render(template: Template, **changes: Any) -> Content:
    data = {**TEMPLATES[template].sample, **changes}
    return RENDERER.render(template, read_data(template, data))


@pytest.mark.parametrize("template", Template)
def test_a_template_has_both_forms_and_a_subject(template: Template) -> None:
    content = render(template)

    assert (DIRECTORY / f"{template}.html").is_file()
    assert (DIRECTORY / f"{template}.txt").is_file()
    for text in content:
        assert "{{" not in text
    assert content.subject.strip() == content.subject != ""


@pytest.mark.parametrize("template", Template)
def test_a_mail_loads_nothing_and_runs_nothing(template: Template) -> None:
    html = render(template).html.lower()

    assert not re.search(r"<(img|script|link|iframe|object|embed|form|svg)\b", html)
    assert not re.search(r"url\(|@import|\son\w+=|javascript:", html)


@pytest.mark.parametrize("template", Template)
def test_styles_are_in_the_elements_and_dark_mode_in_the_head(template: Template) -> None:
    html = render(template).html

    head, _, body = html.partition("<body")
    assert "prefers-color-scheme: dark" in head
    assert '<meta name="color-scheme" content="light dark">' in head
    assert "<style" not in body
    assert re.search(r'<h1 style="[^"]*color:', body)
    assert re.search(r'class="card"[^>]* style="[^"]*background-color:', body)


@pytest.mark.parametrize("template", Template)
def test_both_forms_say_why_it_came_and_what_to_do(template: Template) -> None:
    for text in render(template)[1:]:
        assert "Why you got this mail" in text
        assert "If it was not you" in text


def test_a_report_is_named_counted_and_linked_in_both_forms() -> None:
    _, html, text = render(Template.REPORT_READY, **REPORT)

    assert "users (1)" in html
    assert "1,815 rows" in html
    assert 'href="http://localhost:8084/api/reports/1/download?a=1&amp;b=2"' in html
    assert "users (1)" in text
    assert "1,815 rows" in text
    assert "http://localhost:8084/api/reports/1/download?a=1&b=2" in text


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 rows"), (1, "1 row\n"), (2, "2 rows"), (1_000_000, "1,000,000")]
)
def test_rows_are_counted_as_people_do(count: int, words: str) -> None:
    assert words in render(Template.REPORT_READY, recordCount=count).text


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "//example.org/x",
        "http://",
        "http:///x",
        "https://example.org/a b",
        "https://example.org/\r\nBcc:x",
        "https://example.org/" + "x" * 2000,
        "",
    ],
)
def test_a_link_that_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(TemplateDataMissingError) as caught:
        read_data(Template.REPORT_READY, {**REPORT, "downloadUrl": url})

    assert [error.pointer for error in caught.value.errors] == ["/data/downloadUrl"]


def test_markup_in_a_value_stays_text() -> None:
    url = 'https://example.org/"><script>alert(1)</script>{{7*7}}'
    _, html, _ = render(Template.REPORT_READY, downloadUrl=url)

    assert "<script" not in html
    assert "{{7*7}}" in html


def test_markup_in_the_brand_stays_text() -> None:
    content = Renderer(brand="<b>{{7*7}}</b>").render(
        Template.WELCOME, read_data(Template.WELCOME, {})
    )

    assert "&lt;b&gt;{{7*7}}&lt;/b&gt;" in content.html
    assert "<b>{{7*7}}</b>" in content.subject


def test_missing_data_is_named_without_its_values() -> None:
    with pytest.raises(TemplateDataMissingError) as caught:
        read_data(Template.REPORT_READY, {"reportName": "users", "recordCount": "secret"})

    assert [error.pointer for error in caught.value.errors] == [
        "/data/recordCount",
        "/data/downloadUrl",
    ]
    assert "secret" not in caught.value.detail
    assert caught.value.code == "template_data_missing"


def test_every_placeholder_of_a_template_is_one_that_is_filled_in() -> None:
    renderer = Renderer(brand="UserStream")
    renderer._parts[Template.WELCOME] = renderer._parts[Template.REPORT_READY]

    with pytest.raises(UndefinedError):
        renderer.render(Template.WELCOME, read_data(Template.WELCOME, {}))


def test_data_is_frozen_so_that_it_can_name_a_kept_body() -> None:
    data = read_data(Template.REPORT_READY, REPORT)

    assert hash(data) == hash(read_data(Template.REPORT_READY, REPORT))
    with pytest.raises(ValidationError):
        data.report_name = "other"  # type: ignore[attr-defined]  # that is the point
