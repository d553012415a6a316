import asyncio
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import structlog

from common.amqp.message import Envelope
from common.contracts.canary import canary_address, new_canary_id
from common.contracts.notifications import Claim, DeliveryStatus, EmailRequested, Template
from common.errors import (
    DatabaseServiceUnavailableError,
    DestinationBusyError,
    InProgressError,
    MailDeferredError,
    MailServerUnavailableError,
    MailUnsureError,
    UpstreamTimeoutError,
)
from sender import handlers, lease
from sender.lease import LeaseLostError
from sender.mime import MailWriter
from sender.render import Renderer
from sender.template_data import TemplateDataMissingError
from tests.fakes.sender import (
    FakeDeliveries,
    FakeMailer,
    an_envelope,
    deferred,
    refused,
    unsure,
)
from tests.polling import until

WRITER = MailWriter(
    Renderer(brand="UserStream"), from_email="hello@example.com", from_name="UserStream"
)
send_email = partial(handlers.send_email, writer=WRITER)


async def handle(
    mailer: FakeMailer, deliveries: FakeDeliveries, envelope: Envelope[EmailRequested] | None = None
) -> None:
    await send_email(envelope or an_envelope(), mailer=mailer, deliveries=deliveries)


async def test_a_mail_is_sent_and_recorded_with_the_servers_reply() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()

    await handle(mailer, deliveries)

    assert [mail.recipient for mail in mailer.sent] == ["ada@example.org"]
    (outcome,) = deliveries.outcomes
    assert (outcome.status, outcome.reply_code) == (DeliveryStatus.SENT, 250)
    assert outcome.reply_text == "2.0.0 queued"


async def test_a_canarys_mail_is_claimed_and_settled_and_handed_to_nobody() -> None:
    mailer, deliveries = FakeMailer(away=MailServerUnavailableError("away")), FakeDeliveries()
    canary = an_envelope(registration_id=new_canary_id())

    await handle(mailer, deliveries, canary)
    await handle(mailer, deliveries, canary)

    assert mailer.sent == []
    assert [claim.registration_id for claim in deliveries.claims] == [
        canary.data.registration_id
    ] * 2
    (outcome,) = deliveries.outcomes
    assert (outcome.status, outcome.reply_code, outcome.reply_text) == (
        DeliveryStatus.SENT,
        None,
        "canary",
    )


async def test_a_canarys_mail_is_written_as_any_other() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    canary = an_envelope(registration_id=new_canary_id(), template=Template.REPORT_READY, data={})

    with pytest.raises(TemplateDataMissingError):
        await handle(mailer, deliveries, canary)

    assert deliveries.claims == []


async def test_only_a_canarys_mail_is_handed_to_nobody() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    ordinary = an_envelope(registration_id=uuid4(), to=canary_address(new_canary_id()))

    await handle(mailer, deliveries, ordinary)

    assert len(mailer.sent) == 1


async def test_the_same_message_twice_is_one_mail() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    envelope = an_envelope()

    await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert len(mailer.sent) == 1


async def test_a_suppressed_mail_is_not_sent() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    envelope = an_envelope()
    deliveries.final[envelope.id] = Claim.SUPPRESSED

    await handle(mailer, deliveries, envelope)

    assert mailer.sent == []
    assert deliveries.outcomes == []


async def test_a_mail_that_another_sender_has_is_left_to_it_until_its_lease_ends() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries(busy_ms=7_000)
    envelope = an_envelope()
    deliveries.holders[envelope.id] = envelope.id  # some other lease

    with pytest.raises(InProgressError) as raised:
        await handle(mailer, deliveries, envelope)

    assert raised.value.again_after == timedelta(seconds=7)
    assert mailer.sent == []
    assert deliveries.outcomes == []


async def test_a_mail_whose_sender_died_is_sent_once_its_lease_has_ended() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    envelope = an_envelope()
    deliveries.holders[envelope.id] = envelope.id
    with pytest.raises(InProgressError):
        await handle(mailer, deliveries, envelope)

    deliveries.expire(envelope.id)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.SENT]


async def test_one_handling_keeps_its_lease_id_and_the_next_has_another() -> None:
    mailer, deliveries = FakeMailer(outcomes=[deferred()]), FakeDeliveries()
    envelope = an_envelope()

    with pytest.raises(MailDeferredError):
        await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert len({claim.lease_id for claim in deliveries.claims}) == 2


async def test_a_refused_recipient_is_recorded_and_done_with() -> None:
    mailer, deliveries = FakeMailer(outcomes=[refused()]), FakeDeliveries()
    envelope = an_envelope()

    await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.FAILED]
    assert deliveries.outcomes[0].reply_code == 550
    assert mailer.sent == [mailer.sent[0]]


async def test_a_mail_that_is_put_off_is_recorded_and_retried() -> None:
    mailer, deliveries = FakeMailer(outcomes=[deferred()]), FakeDeliveries()
    envelope = an_envelope()

    with pytest.raises(MailDeferredError):
        await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.DEFERRED, DeliveryStatus.SENT]


async def test_an_unsure_mail_goes_again_with_the_same_message_id() -> None:
    mailer, deliveries = FakeMailer(outcomes=[unsure()]), FakeDeliveries()
    envelope = an_envelope()

    with pytest.raises(MailUnsureError):
        await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.UNSURE, DeliveryStatus.SENT]
    message_ids = {mail.content.partition(b"Message-ID: ")[2][:60] for mail in mailer.sent}
    assert len(mailer.sent) == 2
    assert len(message_ids) == 1


@pytest.mark.parametrize("outcome", [refused(), deferred()])
async def test_what_goes_to_logs_and_dead_letters_names_nobody(outcome: Any) -> None:
    mailer, deliveries = FakeMailer(outcomes=[outcome]), FakeDeliveries()
    detail = ""

    with structlog.testing.capture_logs() as lines:
        try:
            await handle(mailer, deliveries)
        except MailDeferredError as error:
            detail = error.detail

    assert lines
    assert "ada" not in f"{lines}{detail}"
    assert "ada" in deliveries.outcomes[0].reply_text


async def test_while_the_mail_server_is_away_no_claim_is_made() -> None:
    mailer, deliveries = FakeMailer(away=MailServerUnavailableError()), FakeDeliveries()

    with pytest.raises(MailServerUnavailableError):
        await handle(mailer, deliveries)

    assert deliveries.claims == []


async def test_a_mail_server_that_goes_away_in_between_leaves_no_lease_behind() -> None:
    mailer = FakeMailer(outcomes=[MailServerUnavailableError("421")])
    deliveries = FakeDeliveries()
    envelope = an_envelope()

    with pytest.raises(MailServerUnavailableError):
        await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.DEFERRED, DeliveryStatus.SENT]


async def test_a_mail_whose_destination_is_busy_leaves_no_lease_behind() -> None:
    mailer = FakeMailer(outcomes=[DestinationBusyError()])
    deliveries = FakeDeliveries()
    envelope = an_envelope()

    with pytest.raises(InProgressError):  # so no try is counted
        await handle(mailer, deliveries, envelope)
    await handle(mailer, deliveries, envelope)

    assert deliveries.statuses == [DeliveryStatus.DEFERRED, DeliveryStatus.SENT]


async def test_a_mail_server_and_a_database_that_go_away_together_pause_the_work() -> None:
    mailer = FakeMailer(outcomes=[MailServerUnavailableError("421")])
    deliveries = FakeDeliveries(record_errors=[DatabaseServiceUnavailableError()])

    with pytest.raises(MailServerUnavailableError):
        await handle(mailer, deliveries)


async def test_a_database_that_is_away_before_the_claim_pauses_the_work() -> None:
    mailer = FakeMailer()
    deliveries = FakeDeliveries(claim_errors=[DatabaseServiceUnavailableError()])

    with pytest.raises(DatabaseServiceUnavailableError):
        await handle(mailer, deliveries)

    assert mailer.sent == []


async def test_a_record_that_fails_is_repeated_and_the_mail_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "FIRST_RECORD_PAUSE_SECONDS", 0.001)
    mailer = FakeMailer()
    deliveries = FakeDeliveries(
        record_errors=[DatabaseServiceUnavailableError(), UpstreamTimeoutError()]
    )

    await handle(mailer, deliveries)

    assert deliveries.statuses == [DeliveryStatus.SENT]
    assert len(mailer.sent) == 1


async def test_missing_data_is_refused_before_anything_happens() -> None:
    mailer, deliveries = FakeMailer(), FakeDeliveries()
    envelope = an_envelope(template=Template.REPORT_READY, data={"reportName": "users"})

    with pytest.raises(TemplateDataMissingError, match="recordCount, downloadUrl"):
        await handle(mailer, deliveries, envelope)

    assert deliveries.claims == []


async def interrupt(mailer: FakeMailer, deliveries: FakeDeliveries) -> None:
    """Cancel a handling where the mailer holds it."""
    task = asyncio.create_task(handle(mailer, deliveries))
    await mailer.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stopped_before_the_text_the_mail_is_free_for_the_next() -> None:
    mailer, deliveries = FakeMailer(hold_before_text=asyncio.Event()), FakeDeliveries()

    await interrupt(mailer, deliveries)

    assert deliveries.statuses == [DeliveryStatus.DEFERRED]
    assert deliveries.holders == {}


async def test_stopped_after_the_text_the_mail_is_unsure() -> None:
    mailer, deliveries = FakeMailer(hold_after_text=asyncio.Event()), FakeDeliveries()

    await interrupt(mailer, deliveries)

    assert deliveries.statuses == [DeliveryStatus.UNSURE]


async def test_stopped_while_recording_the_mail_is_recorded_as_sent() -> None:
    deliveries = FakeDeliveries(record_errors=[DatabaseServiceUnavailableError()])
    mailer = FakeMailer()
    task = asyncio.create_task(handle(mailer, deliveries))
    await until(lambda: not deliveries.record_errors)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert deliveries.statuses == [DeliveryStatus.SENT]


async def test_last_words_do_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "CANCEL_GRACE_SECONDS", 0.01)
    mailer, deliveries = FakeMailer(hold_after_text=asyncio.Event()), FakeDeliveries()

    async def never(_outcome: object) -> bool:
        return await asyncio.Future()

    monkeypatch.setattr(FakeDeliveries, "record_outcome", lambda _, outcome: never(outcome))

    await asyncio.wait_for(interrupt(mailer, deliveries), 5)


async def test_a_process_that_stood_still_does_not_send_what_may_be_another_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    mailer, deliveries = FakeMailer(), FakeDeliveries()

    with pytest.raises(LeaseLostError):
        await handle(mailer, deliveries)

    assert mailer.sent == []


async def test_the_lease_is_renewed_while_the_mail_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.001)
    mailer = FakeMailer(hold_after_text=asyncio.Event())
    deliveries = FakeDeliveries()
    task = asyncio.create_task(handle(mailer, deliveries))
    await mailer.reached.wait()
    deliveries.claim_errors = [DatabaseServiceUnavailableError()]  # a bump is survived
    await until(lambda: len(deliveries.claims) >= 5)

    assert mailer.hold_after_text is not None
    mailer.hold_after_text.set()
    await task

    assert len({claim.lease_id for claim in deliveries.claims}) == 1
    assert deliveries.statuses == [DeliveryStatus.SENT]
    renewals = len(deliveries.claims)
    await asyncio.sleep(0.02)
    assert len(deliveries.claims) == renewals


async def test_a_lease_that_another_took_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.001)
    mailer = FakeMailer(hold_before_text=asyncio.Event())
    deliveries = FakeDeliveries()
    envelope = an_envelope()
    task = asyncio.create_task(handle(mailer, deliveries, envelope))
    await mailer.reached.wait()

    deliveries.holders[envelope.id] = envelope.id
    asked = len(deliveries.claims)
    await until(lambda: len(deliveries.claims) > asked)
    assert mailer.hold_before_text is not None
    mailer.hold_before_text.set()

    with pytest.raises(LeaseLostError):
        await task
    assert mailer.sent == []
