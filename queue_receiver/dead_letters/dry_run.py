"""What would become of dead letters if they were sent back now."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, cast

from common.amqp.dead_letter_queue import DeadLetter, DeadLetterQueue
from common.amqp.message import Envelope, read
from common.contracts.base import Contract
from common.contracts.dead_letters import (
    MAX_DRY_RUN,
    DryRun,
    DryRunMessage,
    DryRunRegistration,
    DryRunRequest,
)
from common.contracts.registrations import RegistrationSubmitted, RegistrationToStore
from common.errors import IdReusedError, InvalidError, PermanentError, UserStreamError
from queue_receiver.handlers import to_store


class Store(Protocol):
    """Where registrations would be stored: ``common.database_client.client`` in production."""

    async def dry_run_registrations(
        self, items: list[RegistrationToStore]
    ) -> list[DryRunRegistration]:
        """What storing them would lead to; stores nothing."""
        ...


async def dry_run(
    request: DryRunRequest, *, queues: Sequence[DeadLetterQueue], records: Store
) -> DryRun:
    """Try messages out: parse them, and store registrations in a transaction that is rolled back.

    Raises:
        DatabaseServiceUnavailableError: It cannot be tried now.
    """
    messages, left_out = await _select(request, queues)
    results = {id(message): _parse(message) for message in messages}
    registrations = {
        key: to_store(cast("Envelope[RegistrationSubmitted]", result))
        for key, result in results.items()
        if isinstance(result, Envelope) and isinstance(result.data, RegistrationSubmitted)
    }
    stored = await _stored(list(registrations.values()), records)
    outcomes = dict(zip(registrations, stored, strict=True))
    return DryRun(
        messages=[
            _as_result(message, outcomes.get(id(message), results[id(message)]))
            for message in messages
        ],
        left_out=left_out,
    )


async def _select(
    request: DryRunRequest, queues: Sequence[DeadLetterQueue]
) -> tuple[list[DeadLetter], int]:
    def is_selected(message: DeadLetter) -> bool:
        return request.matches(message.id, message.route.name, message.code)

    selected: list[DeadLetter] = []
    for queue in queues:
        async with queue.held(is_selected) as held:
            selected += filter(is_selected, held.messages)
    messages = [message for message in selected if message.has_body][:MAX_DRY_RUN]
    return messages, len(selected) - len(messages)


async def _stored(
    items: list[RegistrationToStore], records: Store
) -> list[DryRunRegistration | UserStreamError]:
    """All in one transaction, so that duplicates among them show; each alone if one is refused."""
    if not items:
        return []
    with suppress(InvalidError, IdReusedError):
        return [*await records.dry_run_registrations(items)]
    results: list[DryRunRegistration | UserStreamError] = []
    for item in items:
        try:
            results += await records.dry_run_registrations([item])
        except (InvalidError, IdReusedError) as error:
            results.append(error)
    return results


def _parse(message: DeadLetter) -> Envelope[Contract] | UserStreamError:
    try:
        envelope = read(message.delivery, Contract.by_route(message.route), 0)
        return replace(envelope, id=message.id_when_sent_back())
    except PermanentError as error:
        return error


def _as_result(
    message: DeadLetter, result: Envelope[Contract] | DryRunRegistration | UserStreamError
) -> DryRunMessage:
    if isinstance(result, UserStreamError):
        succeeds, outcome, detail = False, result.code, result.detail
    elif isinstance(result, DryRunRegistration):
        succeeds, outcome, detail = True, str(result.outcome), "Would be stored."
        if outcome == "duplicate":
            detail = "Would be stored as a second registration of a known address."
    else:
        succeeds, outcome = True, "valid"
        detail = "It matches its contract; the rest cannot be tried without doing it."
    return DryRunMessage(
        id=message.id,
        route=message.route.name,
        code=message.code,
        would_succeed=succeeds,
        outcome=outcome,
        detail=detail,
    )
