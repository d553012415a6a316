"""The mails in a real browser: readable for everyone, at any width, light and dark."""

import pytest

from common.contracts.notifications import Template
from sender.render import Renderer
from sender.template_data import TEMPLATES, read_data
from tests.browser import assert_accessible, open_browser

LONG_NAME = {"reportName": "x" * 100}


@pytest.mark.parametrize("template", Template)
async def test_a_mail_can_be_read_by_everyone(template: Template) -> None:
    data = dict(TEMPLATES[template].sample) | (LONG_NAME if TEMPLATES[template].sample else {})
    content = Renderer(brand="UserStream").render(template, read_data(template, data))

    async with open_browser() as browser:
        page = await browser.new_page()
        await page.set_content(content.html)

        await assert_accessible(page)


async def test_the_button_is_large_enough_for_a_thumb() -> None:
    data = read_data(Template.REPORT_READY, TEMPLATES[Template.REPORT_READY].sample)
    content = Renderer(brand="UserStream").render(Template.REPORT_READY, data)

    async with open_browser() as browser:
        page = await browser.new_page(viewport={"width": 320, "height": 600})
        await page.set_content(content.html)
        box = await page.get_by_role("link", name="Download the report").bounding_box()

    assert box is not None
    assert box["height"] >= 44  # WCAG 2.2, 2.5.5
