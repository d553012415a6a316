"""The client of database_service; calls made at the same time are sent in one request."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self, TypeVar
from urllib.parse import urlencode
from uuid import UUID

import aiohttp
from pydantic import AnyHttpUrl, BaseModel, ValidationError
from yarl import URL

from common.context import outgoing_headers
from common.contracts.bounces import BounceRecorded, BounceReport
from common.contracts.dead_letters import (
    DeadLetterDiscard,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardQuery,
    DryRunRegistration,
    DryRunRegistrations,
)
from common.contracts.ledger import (
    Acknowledged,
    AcknowledgeIncidents,
    LedgerBatch,
    LedgerPosition,
    PositionQuery,
    Reconciliation,
    ReconciliationRequest,
    UnpromisedPublications,
    UnpromisedRecorded,
)
from common.contracts.notifications import (
    ClaimRequest,
    ClaimRequests,
    ClaimResult,
    ClaimResults,
    DeliveryOutcomeOf,
    DeliveryOutcomes,
    MailSuppressed,
    Notification,
    OutcomeResult,
    OutcomeResults,
    SuppressedMail,
)
from common.contracts.registrations import (
    MAX_BULK,
    CanariesRemoved,
    Journey,
    Journeys,
    JourneysWanted,
    RegistrationsToStore,
    RegistrationToStore,
    StoredRegistration,
    StoredRegistrations,
)
from common.contracts.reports import (
    ReportList,
    ReportListQuery,
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
    UserReportQuery,
)
from common.contracts.resends import (
    NotificationList,
    NotificationQuery,
    ResendMark,
    ResendMarked,
    ResendMarks,
)
from common.database_client.batching import Batcher
from common.database_client.circuit import Circuit
from common.database_client.http_client import HttpClient, MalformedAnswerError
from common.errors import (
    ConflictError,
    DatabaseServiceUnavailableError,
    NotFoundError,
    RowLockedError,
    StaleError,
    UpstreamError,
    UpstreamTimeoutError,
    UserStreamError,
)
from common.failpoints import failpoint

REQUEST_SECONDS = 10.0
"""Longest wait for an answer; a bulk store of 500 takes some 10 ms."""

READINESS_SECONDS = 2.0
"""Longest wait for the service's own readiness check."""

CHUNK_BYTES = 32 * 1024
"""Of a report at most at once; what has arrived may be a quarter of a megabyte."""

STREAM_SILENCE_SECONDS = 60.0
"""Longest pause between two chunks of a streamed report."""

OK = 200

_ABOUT_THE_REQUEST = (400, 404, 409, 412, 413, 422)
"""Refusals of the request itself; any other one means a wrong address, a proxy, another release."""


Model = TypeVar("Model", bound=BaseModel)


class DatabaseClient:
    """Calls database_service; reports are streamed by a session of their own."""

    def __init__(self, client: HttpClient, session: aiohttp.ClientSession) -> None:
        self.circuit = Circuit("database_service", is_ready=self._is_ready)
        self._away = DatabaseServiceUnavailableError()
        self._client = client
        self._session = session
        self._store = Batcher(self._store_all, name="registrations", max_items=MAX_BULK)
        self._claim = Batcher(self._claim_all, name="claims", max_items=MAX_BULK)
        self._record = Batcher(self._record_all, name="outcomes", max_items=MAX_BULK)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: AnyHttpUrl | str) -> AsyncIterator[Self]:
        """A client of the database_service at ``url``; nothing is connected yet."""
        base = URL(str(url).rstrip("/") + "/")
        timeout = aiohttp.ClientTimeout(total=None, sock_read=STREAM_SILENCE_SECONDS)
        async with (
            HttpClient.open(base) as client,
            aiohttp.ClientSession(base_url=base, timeout=timeout) as session,
        ):
            asks = cls(client, session)
            try:
                yield asks
            finally:
                await asks.circuit.aclose()

    async def check(self) -> None:
        """Raise DatabaseServiceUnavailableError unless it calls itself ready."""
        self._require_closed_circuit()
        away = DatabaseServiceUnavailableError("database_service does not call itself ready.")
        if await self._is_away(away):
            raise away

    # -- registrations ----------------------------------------------------------------------

    async def store(self, registration: RegistrationToStore) -> StoredRegistration:
        """Store a registration exactly once; the same id again gets the same answer."""
        return await self._store(registration)

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        return await self._get(f"api/registrations/{registration_id}", Journey)

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        """How far each registration has come, in their order; at most ``MAX_BULK``."""
        wanted = JourneysWanted(registration_ids=list(registration_ids))
        path = "api/registrations/journeys"
        return (await self._send_bulk(path, wanted, Journeys)).journeys

    async def delete_canary(self, canary_id: UUID) -> None:
        """Remove a canary that was mailed, and those that are no longer awaited."""
        await self._ask("DELETE", f"api/canaries/{canary_id}", None, CanariesRemoved)

    async def _store_all(self, items: list[RegistrationToStore]) -> list[StoredRegistration]:
        body = RegistrationsToStore.model_construct(registrations=items)
        return (await self._send_bulk("api/registrations/bulk", body, StoredRegistrations)).results

    async def dry_run_registrations(
        self, items: list[RegistrationToStore]
    ) -> list[DryRunRegistration]:
        """What storing them would come to; nothing is stored."""
        body = RegistrationsToStore.model_construct(registrations=items)
        path = "api/registrations/dry-run"
        return (await self._send("POST", path, body, DryRunRegistrations)).results

    # -- dead letters -----------------------------------------------------------------------

    async def record_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Keep why a dead letter was discarded."""
        return await self._send("POST", "api/dead-letters/discards", discard, DiscardedDeadLetter)

    async def select_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """A page of discarded dead letters, newest first."""
        return await self._get("api/dead-letters/discards", DiscardedDeadLetters, query)

    # -- ledger -----------------------------------------------------------------------------

    async def select_ledger_position(self, stream: str) -> LedgerPosition:
        """How far a stream was read."""
        return await self._get("api/ledger/position", LedgerPosition, PositionQuery(stream=stream))

    async def insert_ledger_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write what was read of a stream, unless another reader was first."""
        return await self._send_bulk("api/ledger/entries", batch, LedgerPosition)

    async def reconcile_ledger(self, request: ReconciliationRequest) -> Reconciliation:
        """The ledger's totals, and who is missing for long."""
        return await self._send_bulk("api/ledger/reconciliations", request, Reconciliation)

    async def acknowledge_incidents(self, request: AcknowledgeIncidents) -> Acknowledged:
        """Keep who has taken note of what the ledger cannot account for."""
        return await self._send_bulk("api/ledger/acknowledgements", request, Acknowledged)

    async def record_unpromised(self, unpromised: UnpromisedPublications) -> int:
        """Keep what was published and answered with 503; how many were not known yet.

        Raises:
            NotFoundError: It is of an older release, which does not ask.
        """
        path = "api/ledger/unpromised"
        return (await self._send("POST", path, unpromised, UnpromisedRecorded)).recorded

    # -- notifications ----------------------------------------------------------------------

    async def claim(self, request: ClaimRequest) -> ClaimResult:
        """Ask for the right to send a mail, or renew it."""
        return await self._claim(request)

    async def record_outcome(self, outcome: DeliveryOutcomeOf) -> bool:
        """Say how an attempt ended; False if the lease had passed to another sender."""
        return (await self._record(outcome)).recorded

    async def suppress_mail(self, mail: SuppressedMail) -> None:
        """Record that a mail is not to be sent, unless something is known of it."""
        await self._send_bulk("api/notifications/suppressed", mail, MailSuppressed)

    async def select_notification(self, notification_id: UUID) -> Notification:
        """How a notification stands. Raises NotFoundError."""
        return await self._get(f"api/notifications/{notification_id}", Notification)

    async def select_notifications(self, query: NotificationQuery) -> NotificationList:
        """Some mails of a day, oldest first."""
        return await self._get("api/notifications", NotificationList, query)

    async def mark_resends(self, mark: ResendMark) -> list[ResendMarked]:
        """Open mails for one more claim each; answers in their order."""
        return (await self._send("POST", "api/notifications/resends", mark, ResendMarks)).results

    async def insert_bounce(self, report: BounceReport) -> BounceRecorded:
        """Record what a mail server reported later."""
        return await self._send("POST", "api/bounces", report, BounceRecorded)

    async def _claim_all(self, items: list[ClaimRequest]) -> list[ClaimResult]:
        body = ClaimRequests.model_construct(claims=items)
        return (await self._send_bulk("api/notifications/claims", body, ClaimResults)).results

    async def _record_all(self, items: list[DeliveryOutcomeOf]) -> list[OutcomeResult]:
        body = DeliveryOutcomes.model_construct(outcomes=items)
        return (await self._send_bulk("api/notifications/outcomes", body, OutcomeResults)).results

    # -- reports ----------------------------------------------------------------------------

    async def insert_report(self, report: ReportRecordRequest) -> ReportRecord:
        """Record that a report was requested; the same id again changes nothing."""
        return await self._send("POST", "api/reports", report, ReportRecord)

    async def update_report(self, report_id: UUID, update: ReportRecordUpdate) -> ReportRecord:
        """Record what became of a report."""
        return await self._send("PUT", f"api/reports/{report_id}", update, ReportRecord)

    async def select_report(self, report_id: UUID) -> ReportRecord:
        """The record of a report. Raises NotFoundError."""
        return await self._get(f"api/reports/{report_id}", ReportRecord)

    async def select_reports(self, query: ReportListQuery) -> ReportList:
        """A page of reports, newest first."""
        return await self._get("api/reports", ReportList, query)

    async def stream_users(self, query: UserReportQuery) -> AsyncGenerator[bytes, None]:
        """The report's text in chunks; ends only when it is whole."""
        self._require_closed_circuit()
        try:
            async with self._session.get(
                "api/users/report",
                params=_parameters(query),
                headers=outgoing_headers(),
                allow_redirects=False,
            ) as response:
                if response.status != OK:
                    body = await response.read()
                    _raise_for(response.status, response.content_type, body)
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # A stream that always breaks off is no outage: it would delay all other reports.
            broken = "The stream of users broke off."
            raise await self._unless_away(UpstreamError(broken), broken) from error

    # -- HTTP -------------------------------------------------------------------------------

    async def _get(self, path: str, answer: type[Model], query: BaseModel | None = None) -> Model:
        url = f"{path}?{urlencode(_parameters(query))}" if query else path
        return await self._ask("GET", url, None, answer)

    async def _send_bulk(self, path: str, body: BaseModel, answer: type[Model]) -> Model:
        """As ``_send``; an answer that is not about the items never counts against them."""
        try:
            return await self._send("POST", path, body, answer)
        except (NotFoundError, ConflictError, StaleError) as error:
            raise UpstreamError(f"database_service does not know {path}.") from error

    async def _send(self, method: str, path: str, body: BaseModel, answer: type[Model]) -> Model:
        data = body.model_dump_json(by_alias=True, exclude_none=True).encode()
        return await self._ask(method, path, data, answer)

    async def _ask(self, method: str, path: str, data: bytes | None, answer: type[Model]) -> Model:
        self._require_closed_circuit()
        try:
            said = await self._client.request(
                method, path, body=data, headers=outgoing_headers(), seconds=REQUEST_SECONDS
            )
        except TimeoutError as error:
            slow = UpstreamTimeoutError(f"No answer within {REQUEST_SECONDS:g} s.")
            raise await self._unless_away(slow, "database_service does not answer.") from error
        except MalformedAnswerError as error:
            raise UpstreamError(
                f"database_service answered something unexpected: {error}."
            ) from error
        except OSError as error:
            away = DatabaseServiceUnavailableError(
                f"database_service cannot be reached: {type(error).__name__}."
            )
            await self._is_away(away)
            raise away from error
        try:
            _raise_for(said.status, said.content_type, said.body)
        except DatabaseServiceUnavailableError as error:
            await self._is_away(error)
            raise
        failpoint("w11")
        try:
            return answer.model_validate_json(said.body)
        except ValidationError as error:
            raise UpstreamError("database_service answered something unexpected.") from error

    async def _unless_away(self, error: UserStreamError, outage: str) -> UserStreamError:
        """``error``, or an outage in these words if database_service is not ready."""
        away = DatabaseServiceUnavailableError(outage)
        return away if await self._is_away(away) else error

    def _require_closed_circuit(self) -> None:
        if not self.circuit.is_closed:
            raise DatabaseServiceUnavailableError(self._away.detail)

    async def _is_away(self, error: DatabaseServiceUnavailableError) -> bool:
        """Whether it is not ready; then every call gets ``error`` until it is."""
        if await self._is_ready():
            return False
        self._away = error
        self.circuit.open()
        return True

    async def _is_ready(self) -> bool:
        try:
            said = await self._client.request(
                "GET", "health/ready", body=None, headers={}, seconds=READINESS_SECONDS
            )
        except OSError:  # TimeoutError is one
            return False
        return said.status == OK


def _parameters(query: BaseModel) -> dict[str, str]:
    values = query.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }


def _raise_for(status: int, content_type: str, body: bytes) -> None:
    """Raise the problem that was answered as the error it was there."""
    if status < 300:  # noqa: PLR2004
        return
    if status < 400:  # noqa: PLR2004
        raise UpstreamError(
            f"database_service redirected ({status}). "
            "Set DATABASE_SERVICE_URL to the final address."
        )
    detail, code = _problem(content_type, body)
    if code == RowLockedError.code:
        raise RowLockedError(detail)
    if status == 503:  # noqa: PLR2004
        raise DatabaseServiceUnavailableError(detail)
    if status >= 500:  # noqa: PLR2004
        raise UpstreamError(f"database_service answered {status}. {detail}")
    if status not in _ABOUT_THE_REQUEST or code not in UserStreamError.by_code:
        # A wrong address, a proxy between, an older release: not the message's fault.
        raise UpstreamError(f"database_service answered {status}. {detail}")
    raise UserStreamError.by_code[code](detail)


def _problem(content_type: str, body: bytes) -> tuple[str, str]:
    """Detail and code of a problem document; empty if it is none."""
    try:
        document = json.loads(body) if content_type == "application/problem+json" else {}
        return str(document.get("detail", "")), str(document.get("code", ""))
    except (ValueError, AttributeError):  # no JSON, or no object
        return "", ""
