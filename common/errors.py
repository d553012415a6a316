"""Errors by class; the base class decides what becomes of the message or request."""

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
    title: ClassVar[str] = "Internal error"

    by_code: ClassVar[dict[str, type["UserStreamError"]]] = {}
    """Every concrete class by its ``code``: another service's problem becomes an error again."""

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
    """A service this one depends on is away: the consumer pauses and no attempt is counted."""

    code = "unavailable"
    http_status = 503
    title = "A required service is unavailable"

    retry_after_seconds: ClassVar[int] = 5

    concerns_all: ClassVar[bool] = False
    """Whether one message that meets it proves that every other one would."""


class InProgressError(UserStreamError):
    """Another worker has this message: it is deferred, and no attempt is counted.

    Between a handler and its dispatcher only; no service answers with it.
    """

    code = "in_progress"
    title = "Another worker is processing this message"

    def __init__(self, detail: str = "", *, again_after: timedelta = timedelta()) -> None:
        super().__init__(detail)
        self.again_after = again_after
        """When the other worker has finished or its lease has expired, at the latest."""


class DestinationBusyError(InProgressError):
    """Slow mails to the same domain hold as many connections as they may: no attempt is counted."""

    code = "destination_busy"
    title = "Too many slow mails to that domain are in progress"


class PermanentError(UserStreamError):
    """Repeating the call cannot help: the message is dead-lettered."""

    code = "rejected"
    http_status = 400
    title = "The request cannot be accepted"


class BrokerUnavailableError(UnavailableError):
    """The broker did not confirm within the deadline: nothing was promised."""

    code = "broker_unavailable"
    title = "Message broker unavailable"


class NotConfirmedError(BrokerUnavailableError):
    """The message was written and the broker did not confirm it: some of its queues may have it."""


class UnroutableError(UnavailableError):
    """The broker returned the message: no queue is bound to its exchange."""

    code = "unroutable"
    concerns_all = True
    title = "No queue is bound for this message"


class TopologyMissingError(UnavailableError):
    """An exchange or queue this service uses does not exist at the broker."""

    code = "topology_missing"
    concerns_all = True
    title = "The message broker lacks an exchange or queue"


class DatabaseServiceUnavailableError(UnavailableError):
    """database_service did not answer, or said that it cannot."""

    code = "database_service_unavailable"
    title = "database_service unavailable"


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL did not answer."""

    code = "database_unavailable"
    title = "PostgreSQL unavailable"


class MailServerUnavailableError(UnavailableError):
    """No connection, no greeting, a refused login, or one recipient refused after the other."""

    code = "mail_server_unavailable"
    title = "Mail server unavailable"


class UpstreamError(TransientError):
    """Another service answered 500, or something that cannot be read."""

    code = "upstream_error"


class UpstreamTimeoutError(TransientError):
    """Another service that reports itself ready did not answer in time."""

    code = "upstream_timeout"


class RowLockedError(TransientError):
    """Another transaction holds a lock on this one row; no other row is concerned.

    Answered like an outage, since a retry is all that helps; but a message that meets it waits
    in a retry step by itself.
    """

    code = "row_locked"
    http_status = 503
    title = "Row locked by another transaction"

    retry_after_seconds: ClassVar[int] = 5


class StorageError(TransientError):
    """A file cannot be written or read; the system's reason is in the detail."""

    code = "storage_failed"
    title = "A file cannot be written or read"


class NoSpaceError(StorageError):
    """The disk that holds the reports is full."""

    code = "no_space"
    title = "No space left for the file"


class MailDeferredError(TransientError):
    """The mail server did not take the mail, for no reason that lies with its recipient."""

    code = "mail_deferred"


class MailUnsureError(TransientError):
    """The connection dropped after the final dot: the mail may have been accepted or not."""

    code = "mail_unsure"


class MalformedError(PermanentError):
    """The bytes cannot be read: not JSON, or not HTTP as this server speaks it."""

    code = "malformed"
    title = "Malformed request"


class InvalidError(PermanentError):
    """The body can be read, but a value breaks a rule; ``errors`` says which."""

    code = "invalid"
    http_status = 422
    title = "Invalid values"


class UnknownVersionError(PermanentError):
    """A message names a type or version that this service does not read."""

    code = "unknown_version"


class ProcessKilledError(PermanentError):
    """Processes died repeatedly with this message as their only delivery in flight."""

    code = "process_killed"


class DeliveryLimitError(PermanentError):
    """Delivered without success too often; the broker names its own limit the same."""

    code = "delivery_limit"


class TooLargeError(PermanentError):
    """The body is larger than the limit."""

    code = "too_large"
    http_status = 413
    title = "Body too large"


class TooSlowError(TransientError):
    """The body did not arrive in time."""

    code = "too_slow"
    http_status = 408
    title = "Body not received in time"


class UnsupportedMediaTypeError(PermanentError):
    """The body is of a type or encoding that this endpoint does not read."""

    code = "unsupported_media_type"
    http_status = 415
    title = "Unsupported media type"


class ExpectationError(PermanentError):
    """The header ``Expect`` asks for something other than ``100-continue`` (RFC 9110, 10.1.1)."""

    code = "expectation_failed"
    http_status = 417
    title = "Expectation failed"


class NotFoundError(PermanentError):
    """Nothing exists under that id or path."""

    code = "not_found"
    http_status = 404
    title = "Not found"


class MethodNotAllowedError(PermanentError):
    """The path exists, but not with that method."""

    code = "method_not_allowed"
    http_status = 405
    title = "Method not allowed"

    allowed_methods: tuple[str, ...] = ()


class CrossSiteError(PermanentError):
    """A page of another site made a browser send this."""

    code = "cross_site"
    http_status = 403
    title = "Cross-site request refused"


class HostNotAllowedError(PermanentError):
    """The request was sent to a name that is none of this service's (RFC 9110, 15.5.20)."""

    code = "host_not_allowed"
    http_status = 421
    title = "Host not allowed"


class HeaderTooLargeError(PermanentError):
    """A header is longer than the server reads (RFC 6585, 5)."""

    code = "header_too_large"
    http_status = 431
    title = "Request header too large"


class DuplicateEmailError(PermanentError):
    """Another user has that e-mail address."""

    code = "duplicate_email"
    http_status = 409
    title = "E-mail address already in use"


class ConflictError(PermanentError):
    """The current state does not allow this operation."""

    code = "conflict"
    http_status = 409
    title = "Conflict with the current state"


class IdReusedError(PermanentError):
    """A message's id was used before, for the registration of another person."""

    code = "id_reused"
    http_status = 409
    title = "Id already used for another registration"


class GoneError(PermanentError):
    """It existed and was removed."""

    code = "gone"
    http_status = 410
    title = "No longer available"


class RangeNotSatisfiableError(PermanentError):
    """The part that was asked for lies beyond the end (RFC 9110, 15.5.17)."""

    code = "range_not_satisfiable"
    http_status = 416
    title = "Range not satisfiable"


class StaleError(PermanentError):
    """``If-Match`` names a version that is no longer the current one."""

    code = "stale"
    http_status = 412
    title = "Changed since it was read"


class IdempotencyKeyReusedError(PermanentError):
    """The same ``Idempotency-Key`` came with another body."""

    code = "idempotency_key_reused"
    http_status = 422
    title = "Idempotency-Key already used with another body"
