"""What would become of dead letters if they were sent back now."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from common.amqp.dead_letter_queue import DeadLetter, DeadLetterQueue
from common.amqp.message import Envelope, read
from common.contracts.base import Contract
from common.contracts.dead_letters import (
    MAX_DRY_RUN,
    DryRun,
    DryRunLetter,
    DryRunRegistration,
    DryRunRequest,
)
from common.contracts.registrations import RegistrationSubmitted, RegistrationToStore
from common.errors import IdReusedError, InvalidError, PermanentError, UserStreamError


class Store(Protocol):
    """Where registrations would be stored: ``common.database_client.client`` in production."""

    async def dry_run_registrations(
        self, items: list[RegistrationToStore]
    ) -> list[DryRunRegistration]:
        """What storing would come to."""
        ...


async def dry_run(
    request: DryRunRequest, *, queues: Sequence[DeadLetterQueue], records: Store
) -> DryRun:
    """What would become of letters; stores, sends and moves nothing.

    Raises:
        DatabaseServiceUnavailableError: It cannot be tried now.
    """
    letters, left_out = await _chosen(request, queues)
    results = {id(letter): _checked(letter) for letter in letters}
    registrations = {
        key: _to_store(result)
        for key, result in results.items()
        if isinstance(result, Envelope) and isinstance(result.data, RegistrationSubmitted)
    }
    stored = await _stored(list(registrations.values()), records)
    outcomes = dict(zip(registrations, stored, strict=True))
    return DryRun(
        letters=[
            _as_result(letter, outcomes.get(id(letter), results[id(letter)])) for letter in letters
        ],
        left_out=left_out,
    )


async def _chosen(
    request: DryRunRequest, queues: Sequence[DeadLetterQueue]
) -> tuple[list[DeadLetter], int]:
    def is_meant(letter: DeadLetter) -> bool:
        return request.matches(letter.id, letter.route.name, letter.code)

    meant: list[DeadLetter] = []
    for queue in queues:
        async with queue.held(is_meant) as held:
            meant += filter(is_meant, held.messages)
    letters = [letter for letter in meant if letter.has_body][:MAX_DRY_RUN]
    return letters, len(meant) - len(letters)


async def _stored(
    items: list[RegistrationToStore], records: Store
) -> list[DryRunRegistration | UserStreamError]:
    """All together, as they would meet each other; each alone where one is refused."""
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


def _checked(letter: DeadLetter) -> Envelope[Contract] | UserStreamError:
    try:
        envelope = read(letter.delivery, Contract.by_route(letter.route), 0)
        return replace(envelope, id=letter.id_when_sent_back())
    except PermanentError as error:
        return error


def _to_store(envelope: Envelope[Contract]) -> RegistrationToStore:
    data = envelope.data
    if not isinstance(data, RegistrationSubmitted):
        raise TypeError("not a registration")
    return RegistrationToStore(
        registration_id=envelope.id,
        name=data.name,
        surname=data.surname,
        email=data.email,
        received_at=data.timestamp or envelope.published_at or datetime.now(UTC),
    )


def _as_result(
    letter: DeadLetter, result: Envelope[Contract] | DryRunRegistration | UserStreamError
) -> DryRunLetter:
    if isinstance(result, UserStreamError):
        passes, outcome, detail = False, result.code, result.detail
    elif isinstance(result, DryRunRegistration):
        passes, outcome, detail = True, str(result.outcome), "Would be stored."
        if outcome == "duplicate":
            detail = "Would be stored as a second registration of a known address."
    else:
        passes, outcome = True, "valid"
        detail = "Its service can read it; the rest cannot be tried without doing it."
    return DryRunLetter(
        id=letter.id,
        route=letter.route.name,
        code=letter.code,
        would_succeed=passes,
        outcome=outcome,
        detail=detail,
    )
