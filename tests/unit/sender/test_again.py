"""What is kept of a mail, so that it can be written again, and what is left alone."""

from typing import Any
from uuid import uuid4

import pytest

from common.contracts.notifications import (
    SAME_FOR_EVERYBODY,
    Claim,
    DeliveryStatus,
    MailContent,
    Template,
)
from common.contracts.resends import NotificationSummary, ResendDecision
from sender.lease import take_lease
from sender.routes.resends import REFUSALS
from sender.template_data import TEMPLATES, NoData
from tests.fakes.sender import FakeDeliveries, an_envelope


def test_mails_that_need_no_data_are_known_as_such() -> None:
    assert {template for template in Template if TEMPLATES[template].data is NoData} == (
        SAME_FOR_EVERYBODY
    )


def test_every_refusal_says_why() -> None:
    said = set(REFUSALS) | {ResendDecision.OPENED, ResendDecision.UNKNOWN}

    assert said == set(ResendDecision)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, None),  # nearly all mails: nothing travels, nothing is stored
        ({"subject": "Hello"}, MailContent(subject="Hello")),
        ({"data": {"reportName": "users"}}, MailContent(data={"reportName": "users"})),
    ],
)
async def test_a_claim_says_what_the_template_does_not(
    changes: dict[str, Any], kept: MailContent | None
) -> None:
    deliveries = FakeDeliveries()

    assert await take_lease(an_envelope(**changes), deliveries) is not None

    (claim,) = deliveries.claims
    assert claim.content == kept
    assert ("content" in claim.model_dump_json(exclude_none=True)) is (kept is not None)


@pytest.mark.parametrize(
    ("template", "content", "is_writable"),
    [
        (Template.WELCOME, None, True),
        (Template.REPORT_READY, MailContent(data={"reportName": "users"}), True),
        (Template.REPORT_READY, None, False),
    ],
)
def test_a_mail_can_be_written_again_if_it_is_known_what_it_said(
    template: Template, content: MailContent | None, *, is_writable: bool
) -> None:
    mail = NotificationSummary.model_validate(
        {
            "notification_id": uuid4(),
            "template": template,
            "status": DeliveryStatus.FAILED,
            "reason": None,
            "recipient": "ada@example.org",
            "user_id": None,
            "registration_id": None,
            "content": content,
            "is_suppressed": False,
            "created_at": "2026-11-21T10:00:00Z",
            "updated_at": "2026-11-21T10:00:00Z",
        }
    )

    assert mail.is_writable is is_writable


async def test_a_suppressed_mail_is_skipped() -> None:
    deliveries, envelope = FakeDeliveries(), an_envelope()
    deliveries.final[envelope.id] = Claim.SUPPRESSED

    assert await take_lease(envelope, deliveries) is None
