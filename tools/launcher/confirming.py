"""Whether a broker does what it is there for: confirm a message that it has on disk.

An open port says little: after a full disk, RabbitMQ's log writer may stay dead while everything
else answers, and then no publish is confirmed any more.
"""

from dataclasses import dataclass

from common.amqp.management import ManagementApi
from common.errors import BrokerUnavailableError

QUEUE = "health.probe"
"""Made where it is missing. It keeps no message: each is confirmed and dropped."""

ARGUMENTS = {"x-queue-type": "quorum", "x-max-length": 0}

PUBLISH = {
    "routing_key": QUEUE,
    "properties": {"delivery_mode": 2},
    "payload": "",
    "payload_encoding": "string",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an examination."""

    problem: str = ""
    """In words; empty if all is well."""

    needs_restart: bool = False
    """Whether a restart may cure it; none frees memory or disk."""


def examine_broker(management: ManagementApi) -> Finding:
    """Publish a message as administrator and wait for its confirm; takes a few calls."""
    try:
        if alarms := management.alarms():
            return Finding(f"It takes no messages: {'; '.join(alarms)}.")
    except BrokerUnavailableError as error:
        return Finding(f"Its management API does not answer: {error}", needs_restart=True)
    try:
        if _is_confirmed(management):
            return Finding()
    except BrokerUnavailableError:
        pass  # the queue alone may be broken, as one that was killed in its first seconds is
    try:
        _make_anew(management)
        if _is_confirmed(management):
            return Finding()
        reason = "the queue made for it takes nothing"
    except BrokerUnavailableError as error:
        reason = str(error)
    return Finding(f"It confirms no message: {reason}", needs_restart=True)


def _is_confirmed(management: ManagementApi) -> bool:
    """Whether a message was confirmed, after which the answer comes; False without the queue."""
    answer = management.call("POST", "/api/exchanges/%2F/amq.default/publish", PUBLISH)
    return bool(answer["routed"])


def _make_anew(management: ManagementApi) -> None:
    queue = f"/api/queues/%2F/{QUEUE}"
    management.call("DELETE", queue, or_none=True)
    management.call("PUT", queue, {"durable": True, "arguments": ARGUMENTS})
