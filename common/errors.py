"""Every kind of failure; its base class decides what becomes of the message or request."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request."""

    pointer: str
    """JSON pointer (RFC 6901) into the body, or the parameter's name."""

    detail: str
    """What a person should change."""


class UserStreamError(Exception):
    """Base of all our errors; ``code`` is stable and survives the process boundary.

    A message that meets this base class itself is retried like any unexpected error.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong here"

    by_code: ClassVar[dict[str, type["UserStreamError"]]] = {}
    """Every concrete class by its ``code``: how a neighbour's problem becomes an error again."""

    def __init__(self, detail: str = "", *, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" in cls.__dict__:
            UserStreamError.by_code[cls.code] = cls


class SettingError(Exception):
    """A setting contradicts another one or the code; the process stops and names it."""


class TransientError(UserStreamError):
    """Repeating the call may help: the message goes through the retry steps."""

    code = "transient"


class UnavailableError(UserStreamError):
    """A neighbour is away: the consumer pauses and no attempt is counted."""

    code = "unavailable"
    http_status = 503
    title = "A part this depends on is not available right now"

    retry_after_seconds: ClassVar[int] = 5

    concerns_all: ClassVar[bool] = False
    """Whether one message that meets it proves that every other one would."""


class InProgressError(UserStreamError):
    """Somebody else is at this very work: it is put aside for a while and no attempt is counted.

    Between a handler and its dispatcher only; no service answers with it.
    """

    code = "under_way"
    title = "Somebody else is at it"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: tuple[FieldError, ...] = (),
        again_after: timedelta = timedelta(),
    ) -> None:
        super().__init__(detail, errors=errors)
        self.again_after = again_after
        """When the other one will have finished, or lost its right to, at the latest."""


class DestinationBusyError(InProgressError):
    """Slow mails to the same domain hold as many connections as they may: no attempt is counted."""

    code = "destination_busy"
    title = "Too many slow mails to that domain are under way"


class PermanentError(UserStreamError):
    """Repeating the call cannot help: the message is dead-lettered."""

    code = "rejected"
    http_status = 400
    title = "The request cannot be accepted"


class BrokerUnavailableError(UnavailableError):
    """The broker did not confirm within the deadline: nothing was promised."""

    code = "broker_unavailable"
    title = "The message broker is not available right now"


class NotConfirmedError(BrokerUnavailableError):
    """The message was written and the broker did not confirm it: some of its queues may have it."""


class UnroutableError(UnavailableError):
    """The broker returned the message: no queue is bound to its exchange."""

    code = "unroutable"
    concerns_all = True
    title = "The message broker has no queue for this message"


class TopologyMissingError(UnavailableError):
    """An exchange or queue this service uses does not exist at the broker."""

    code = "topology_missing"
    concerns_all = True
    title = "The message broker lacks an exchange or queue"


class DatabaseServiceUnavailableError(UnavailableError):
    """database_service did not answer, or said that it cannot."""

    code = "database_service_unavailable"
    title = "The database service is not available right now"


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL did not answer."""

    code = "database_unavailable"
    title = "The database is not available right now"


class MailServerUnavailableError(UnavailableError):
    """No connection, no greeting, a refused login, or one recipient refused after the other."""

    code = "mail_server_unavailable"
    title = "The mail server is not available right now"


class UpstreamError(TransientError):
    """A neighbour answered 500 or something we do not understand."""

    code = "upstream_error"


class UpstreamTimeoutError(TransientError):
    """A neighbour that calls itself ready did not answer in time."""

    code = "upstream_timeout"


class RowLockedError(TransientError):
    """Somebody else's transaction holds the row that this is about, and no other is concerned.

    Answered like an outage, since asking again is all that one can do; but a message that meets
    it waits in a retry step by itself.
    """

    code = "row_locked"
    http_status = 503
    title = "Somebody else holds a lock on what this is about"

    retry_after_seconds: ClassVar[int] = 5


class StorageError(TransientError):
    """A file cannot be written or read; the system's reason is in the detail."""

    code = "storage_failed"
    title = "A file cannot be written or read"


class NoSpaceError(StorageError):
    """The disk that holds the reports is full."""

    code = "no_space"
    title = "There is no space left for the file"


class MailDeferredError(TransientError):
    """The mail server did not take the mail, for no reason that lies with its recipient."""

    code = "mail_deferred"


class MailUnsureError(TransientError):
    """The link dropped after the final dot: the mail may or may not have been accepted."""

    code = "mail_unsure"


class MalformedError(PermanentError):
    """The bytes are not what they should be: not JSON, not HTTP as we speak it."""

    code = "malformed"
    title = "The body cannot be read"


class InvalidError(PermanentError):
    """The body can be read, but a value breaks a rule; ``errors`` says which."""

    code = "invalid"
    http_status = 422
    title = "Some values are not valid"


class UnknownVersionError(PermanentError):
    """A message names a type or version that this service does not read."""

    code = "unknown_version"


class ProcessKilledError(PermanentError):
    """Processes died again and again while they had nothing but this message in hand."""

    code = "process_killed"


class DeliveryLimitError(PermanentError):
    """Given in vain too often; the same as the broker says of a copy that it counted alone."""

    code = "delivery_limit"


class TooLargeError(PermanentError):
    """The body is larger than the limit."""

    code = "too_large"
    http_status = 413
    title = "The body is too large"


class TooSlowError(TransientError):
    """The body did not arrive in time."""

    code = "too_slow"
    http_status = 408
    title = "The body took too long to arrive"


class UnsupportedMediaTypeError(PermanentError):
    """The body is of a type or encoding that this endpoint does not read."""

    code = "unsupported_media_type"
    http_status = 415
    title = "This endpoint does not read that type of body"


class ExpectationError(PermanentError):
    """The header ``Expect`` asks for something other than ``100-continue`` (RFC 9110, 10.1.1)."""

    code = "expectation_failed"
    http_status = 417
    title = "What the header Expect asks for is not known here"


class NotFoundError(PermanentError):
    """There is nothing under that id or path."""

    code = "not_found"
    http_status = 404
    title = "There is nothing here"


class MethodNotAllowedError(PermanentError):
    """The path exists, but not with that method."""

    code = "method_not_allowed"
    http_status = 405
    title = "This path does not take that method"

    allowed_methods: tuple[str, ...] = ()


class CrossSiteError(PermanentError):
    """A page of another site made somebody's browser send this."""

    code = "cross_site"
    http_status = 403
    title = "This was not sent from a page of ours"


class HostNotAllowedError(PermanentError):
    """The request was sent to a name that is none of this service's (RFC 9110, 15.5.20)."""

    code = "host_not_allowed"
    http_status = 421
    title = "This service is not known under that name"


class HeaderTooLargeError(PermanentError):
    """A header is longer than the server reads (RFC 6585, 5)."""

    code = "header_too_large"
    http_status = 431
    title = "A header of the request is too long"


class DuplicateEmailError(PermanentError):
    """Another user has that e-mail address."""

    code = "duplicate_email"
    http_status = 409
    title = "That e-mail address is taken"


class ConflictError(PermanentError):
    """The thing is not in a state in which this can be done."""

    code = "conflict"
    http_status = 409
    title = "That cannot be done in the present state"


class IdReusedError(PermanentError):
    """A message's id was used before, for a registration of somebody else."""

    code = "id_reused"
    http_status = 409
    title = "That id stands for another registration"


class GoneError(PermanentError):
    """It was there, and was removed."""

    code = "gone"
    http_status = 410
    title = "That is no longer here"


class RangeNotSatisfiableError(PermanentError):
    """The part that was asked for lies beyond the end (RFC 9110, 15.5.17)."""

    code = "range_not_satisfiable"
    http_status = 416
    title = "There is no such part"


class StaleError(PermanentError):
    """``If-Match`` names a version that is no longer the current one."""

    code = "stale"
    http_status = 412
    title = "It was changed by someone else meanwhile"


class IdempotencyKeyReusedError(PermanentError):
    """The same ``Idempotency-Key`` came with another body."""

    code = "idempotency_key_reused"
    http_status = 422
    title = "That Idempotency-Key was used with another body"
