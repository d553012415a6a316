import re
from datetime import UTC, datetime
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.contracts.dead_letter_kinds import kind_of
from common.contracts.dead_letters import (
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetterQueueReading,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DryRun,
    DryRunMessage,
)
from common.errors import FieldError, NotFoundError
from queue_receiver.dead_letters.page_routes import KindForm
from queue_receiver.dead_letters.pages import (
    render_confirmation,
    render_discards,
    render_dry_run,
    render_message,
    render_messages,
    render_problem,
)

HOSTILE = "</textarea></pre><img src=x onerror=alert(1)>\"'{{7*7}}\x1b[2J"

MESSAGE_ID = UUID("0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f")


def a_view(**changes: Any) -> DeadLetterView:
    values: dict[str, Any] = {
        "id": MESSAGE_ID,
        "route": "user.registration",
        "code": "malformed",
        "detail": "Not a valid user.registration.submitted.v1: email.",
        "attempts": 1,
        "first_seen": "2026-01-31T09:30:00.000+00:00",
        "failed_service": "queue_receiver",
        "routing_key": "user.registration.submitted.v1",
        "type": "user.registration.submitted.v1",
        "size_bytes": 42,
        "headers": {"x-error-code": "malformed"},
        "body": "{}",
        "unmasked": False,
    }
    return DeadLetterView.model_validate(values | changes)


def all_messages(*messages: DeadLetterView, **look: Any) -> DeadLetters:
    values = {
        "route": "user.registration",
        "messages": len(messages),
        "read": len(messages),
        "complete": True,
        "locked_by_another_reader": False,
    }
    groups = [
        DeadLetterGroup(route=message.route, code=message.code, count=1) for message in messages
    ]
    return DeadLetters(
        queues=[DeadLetterQueueReading.model_validate(values | look)],
        groups=groups,
        messages=list(messages),
        next_after=None,
    )


def the_list(found: DeadLetters, *, done: str = "") -> str:
    return render_messages(found, DeadLetterQuery(), latest=None, done=done)


def test_whatever_stands_in_a_message_stays_text() -> None:
    names = ("code", "detail", "first_seen", "failed_service", "routing_key", "type")
    texts = dict.fromkeys(names, HOSTILE)
    message = a_view(**texts, headers={HOSTILE: HOSTILE}, body=HOSTILE, unmasked=True)
    hidden = a_view(**texts, headers={HOSTILE: HOSTILE}, body=HOSTILE)
    tried = DryRunMessage(
        id=MESSAGE_ID, route="r", code=HOSTILE, would_succeed=False, outcome=HOSTILE, detail=HOSTILE
    )
    discarded = DiscardedDeadLetter.model_construct(
        message_id=MESSAGE_ID,
        route="r",
        error_code=HOSTILE,
        reason=HOSTILE,
        discarded_by=HOSTILE,
        discarded_at=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
    )

    for page in (
        the_list(all_messages(message)),
        render_message(message),
        render_message(hidden),
        render_message(message, errors=[FieldError(HOSTILE, HOSTILE)], typed=HOSTILE),
        render_dry_run(DryRun(messages=[tried], left_out=0)),
        render_discards(DiscardedDeadLetters(discards=[discarded], next_before=None)),
        render_problem(NotFoundError(HOSTILE)),
    ):
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page
        assert "</textarea></pre>" not in page
        assert "49" not in page.replace(str(MESSAGE_ID), "")


def test_a_body_is_edited_as_it_is() -> None:
    # A browser drops the first line break behind <textarea>.
    assert ">\n\n\n{}</textarea>" in render_message(a_view(body="\n\n{}", unmasked=True))


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("upstream_error", "Send back"),
        ("of_another_program", "Send back"),
        ("malformed", "Discard"),
        ("too_large", "Discard"),
        ("unknown_version", "Discard"),
    ],
)
def test_the_first_button_of_a_kind_is_the_one_that_helps(code: str, first: str) -> None:
    page = the_list(all_messages(a_view(code=code)))

    assert buttons_in(page)[0] == first
    assert kind_of(code).meaning in unescape(page)
    assert kind_of(code).advice in unescape(page)


@pytest.mark.parametrize(
    ("code", "first"),
    [("upstream_error", "Send back"), ("malformed", "Correct"), ("too_large", "Discard")],
)
def test_the_first_button_of_a_message_is_the_one_that_helps(code: str, first: str) -> None:
    page = render_message(a_view(code=code))

    assert buttons_in(page)[0] == first
    assert kind_of(code).meaning in unescape(page)


def buttons_in(page: str) -> list[str]:
    return re.findall(r'<(?:button|a class="button")[^>]*>\s*([\w ]+?)<', page)


def test_what_is_about_to_happen_is_said_before_it_does() -> None:
    groups = [
        DeadLetterGroup(route="user.registration", code="malformed", count=2),
        DeadLetterGroup(route="user.registration", code="upstream_error", count=40),
    ]

    sending = render_confirmation("redrive", KindForm(all=True), groups)
    discarding = render_confirmation("discard", KindForm(code="malformed"), groups[:1])

    assert "Send back 42 messages?" in sending
    assert "2 of them" in sending  # these fail again
    assert 'name="all" value="true"' in sending
    assert "Discard 2 messages?" in discarding
    assert 'name="code" value="malformed"' in discarding
    assert 'name="expected" value="2"' in discarding
    assert "Nothing is here" in render_confirmation("discard", KindForm(code="x"), [])


def test_nothing_there_is_said() -> None:
    assert "no message waits" in the_list(all_messages())


def test_what_could_not_be_read_is_said() -> None:
    locked = all_messages(complete=False, locked_by_another_reader=True)
    assert "another reader has locked" in the_list(locked)
    assert "10 of 20 messages" in the_list(all_messages(complete=False, read=10, messages=20))


def test_a_notice_has_a_known_name() -> None:
    assert "The reason is kept" in the_list(all_messages(), done="discarded")
    assert "whatever" not in the_list(all_messages(), done="whatever")


def test_every_form_leads_to_a_known_path() -> None:
    page = render_message(a_view(id=uuid4(), unmasked=True))

    assert page.count('method="post" action="/dead-letters/') == page.count("<form ") == 4
