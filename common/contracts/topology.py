"""Every exchange, queue, binding, policy and broker user; ``definitions.json`` is made from it.

``python -m common.contracts.topology`` prints the definitions file.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

VHOST = "/"

WORK_DELIVERY_LIMIT = 100
"""Deliveries before the broker dead-letters a message by itself; a back-stop only.

Our own count of attempts decides long before. It is high because a crashing consumer
costs everything it had prefetched one delivery, good messages included.
"""

PARKED_DELIVERY_LIMIT = 1_000_000
"""Deliveries for messages that wait (retry steps, dead letters): in effect without a limit.

RabbitMQ 4 would drop after 20, and looking at a dead letter counts as one.
"""

LOG_LIMITS: dict[str, object] = {
    "max-age": "7D",
    "max-length-bytes": 1024**3,
    "stream-max-segment-size-bytes": 64 * 1024**2,
}
"""What a stream keeps: a week, at most 1 GiB; whole segments go when they are too old or too many.

Some four million registrations. With more in a week the stream loses the oldest; the ledger has
read them long before.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One exchange, its work queue, and the queues behind it."""

    name: str
    """Name of the topic exchange and of the work queue bound to it."""

    retry_steps: int = 3
    """Waits before a message that keeps failing is dead-lettered."""

    logged: bool = False
    """Whether a stream keeps each message that was published, for the ledger."""

    @property
    def log(self) -> str:
        """The stream of a logged route; retries pass it by, so it has each publish once."""
        return f"{self.name}.log"

    @property
    def queue(self) -> str:
        """The quorum queue that consumers read."""
        return self.name

    @property
    def return_exchange(self) -> str:
        """Where a retry step's messages go when their wait is over."""
        return f"{self.name}.return"

    @property
    def dead_letter_exchange(self) -> str:
        """Fanout exchange in front of the dead letters."""
        return f"{self.name}.dlx"

    @property
    def dead_letter_queue(self) -> str:
        """Where a message ends that cannot be handled; redriven by a person."""
        return f"{self.name}.dlq"

    def retry_step(self, attempt: int) -> str:
        """Exchange and queue where a message waits after its ``attempt``-th try failed."""
        return f"{self.name}.retry.{attempt}"

    @property
    def retries(self) -> list[str]:
        """All retry steps, first wait first."""
        return [self.retry_step(attempt) for attempt in range(1, self.retry_steps + 1)]


USER_REGISTRATION = Route(name="user.registration", logged=True)
EMAIL_NOTIFICATIONS = Route(name="email.notifications", retry_steps=6)
REPORT_REQUESTS = Route(name="report.requests")

ROUTES = (USER_REGISTRATION, EMAIL_NOTIFICATIONS, REPORT_REQUESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUser:
    """What one service does at the broker, and so the least rights it needs there."""

    publishes: tuple[Route, ...] = ()
    consumes: tuple[Route, ...] = ()
    redrives: tuple[Route, ...] = ()
    """Routes whose dead letters it reads, and sends back into their work queue."""

    audits: tuple[Route, ...] = ()
    """Routes whose stream it reads."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every route it has to do with."""
        return tuple(dict.fromkeys((*self.consumes, *self.publishes)))

    @property
    def exchanges(self) -> list[str]:
        """Everything it publishes to: its messages, and what its consumers retry or give up."""
        names = [route.name for route in self.publishes]
        for route in self.consumes:
            names += [*route.retries, route.dead_letter_exchange]
        return names

    @property
    def fed_queues(self) -> list[str]:
        """Queues that must exist for what it publishes to be kept: work queues and streams."""
        # The stream, too: for some moments after a crash the broker confirms what it does not
        # write there (observed on 3.10).
        return [
            name
            for route in self.publishes
            for name in (route.queue, *([route.log] if route.logged else []))
        ]

    @property
    def declared_queues(self) -> list[str]:
        """Queues that it declares passively: to see that they exist, or to count what waits."""
        consumed = [name for route in self.consumes for name in queues(route)]
        redriven = [route.dead_letter_queue for route in self.redrives]
        return list(dict.fromkeys([*self.fed_queues, *consumed, *redriven]))

    @property
    def write(self) -> str:
        """Permission pattern: the exchanges it publishes to, and the queues it only declares.

        A passive declaration needs some right on the queue (since RabbitMQ 4.3.1; see
        https://github.com/rabbitmq/rabbitmq-server/pull/16272). To write is the least:
        no client publishes to a queue, and to read would be to take its messages.
        """
        names = [*self.exchanges, *(route.return_exchange for route in self.redrives)]
        readable = re.compile(self.read)
        names += [name for name in self.declared_queues if not readable.match(name)]
        return _any_of(list(dict.fromkeys(names)))

    @property
    def read(self) -> str:
        """Permission pattern: the queues it consumes."""
        dead_letters = [route.dead_letter_queue for route in self.redrives]
        logs = [route.log for route in self.audits]
        return _any_of([*(route.queue for route in self.consumes), *dead_letters, *logs])


BROKER_USERS = {
    "frontend": BrokerUser(publishes=(USER_REGISTRATION,)),
    "queue_receiver": BrokerUser(
        consumes=(USER_REGISTRATION,),
        publishes=(EMAIL_NOTIFICATIONS,),
        redrives=ROUTES,
        audits=(USER_REGISTRATION,),
    ),
    "sender": BrokerUser(consumes=(EMAIL_NOTIFICATIONS,), publishes=(EMAIL_NOTIFICATIONS,)),
    "report_generator": BrokerUser(
        consumes=(REPORT_REQUESTS,), publishes=(REPORT_REQUESTS, EMAIL_NOTIFICATIONS)
    ),
}
"""One broker user per service that speaks AMQP; only an administrator may configure."""

MONITOR = "monitor"
"""The broker user that may look at everything over the management API and change nothing."""


def definitions(routes: Sequence[Route] = ROUTES) -> dict[str, object]:
    """The broker's definitions: topology and policies, no users (RabbitMQ 3.10 to 4.x)."""
    return {
        "vhosts": [{"name": VHOST}],
        "policies": [policy for route in routes for policy in _policies(route)],
        "exchanges": [exchange for route in routes for exchange in _exchanges(route)],
        "queues": [queue for route in routes for queue in _queues(route)],
        "bindings": [binding for route in routes for binding in _bindings(route)],
    }


def queues(route: Route) -> list[str]:
    """Names of all queues of a route from which messages are taken: not its stream."""
    return [route.queue, *route.retries, route.dead_letter_queue]


def user_definitions(password_hashes: dict[str, str], tags: dict[str, str]) -> dict[str, object]:
    """The second definitions file: users and permissions.

    Args:
        password_hashes: User name to RabbitMQ password hash. A name that is neither a
            service's nor the monitor's gets every right.
        tags: User name to management tag (``administrator``, ``monitoring``).
    """
    return {
        "users": [
            {
                "name": name,
                "password_hash": password_hash,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": tags.get(name, ""),
            }
            for name, password_hash in password_hashes.items()
        ],
        "vhosts": [{"name": VHOST}],
        "permissions": [permissions(name) for name in password_hashes],
    }


def permissions(name: str) -> dict[str, str]:
    """What a user may do; one that is neither a service's nor the monitor gets every right."""
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    if user := BROKER_USERS.get(name):
        rights = {"configure": "^$", "write": user.write, "read": user.read}
    elif name == MONITOR:
        # The management API asks for its tag alone; a right to read would show every message.
        rights = {"configure": "^$", "write": "^$", "read": "^$"}
    return {"user": name, "vhost": VHOST, **rights}


def _any_of(names: list[str]) -> str:
    return f"^({'|'.join(re.escape(name) for name in names)})$" if names else "^$"


def _policies(route: Route) -> list[dict[str, object]]:
    """Policies rather than queue arguments: arguments cannot be changed without a new queue."""
    never_drop = {"overflow": "reject-publish"}
    at_least_once = {**never_drop, "dead-letter-strategy": "at-least-once"}
    name = re.escape(route.name)
    return [
        _policy(
            route.queue,
            f"^{name}$",
            {
                **at_least_once,
                "dead-letter-exchange": route.dead_letter_exchange,
                "delivery-limit": WORK_DELIVERY_LIMIT,
            },
        ),
        _policy(
            f"{route.name}.retry",
            rf"^{name}\.retry\.\d+$",
            {
                **at_least_once,
                "dead-letter-exchange": route.return_exchange,
                "delivery-limit": PARKED_DELIVERY_LIMIT,
            },
        ),
        _policy(
            route.dead_letter_queue,
            rf"^{re.escape(route.dead_letter_queue)}$",
            {**never_drop, "delivery-limit": PARKED_DELIVERY_LIMIT},
        ),
        *([_policy(route.log, f"^{re.escape(route.log)}$", LOG_LIMITS)] if route.logged else []),
    ]


def _policy(name: str, pattern: str, definition: dict[str, object]) -> dict[str, object]:
    # "queues", not "quorum_queues": RabbitMQ 3.10 refuses the latter, and in silence at boot.
    return {
        "vhost": VHOST,
        "name": name,
        "pattern": pattern,
        "apply-to": "queues",
        "priority": 0,
        "definition": definition,
    }


def _exchanges(route: Route) -> list[dict[str, object]]:
    fanouts = [route.return_exchange, *route.retries, route.dead_letter_exchange]
    return [_exchange(route.name, "topic"), *(_exchange(name, "fanout") for name in fanouts)]


def _exchange(name: str, kind: str) -> dict[str, object]:
    # No alternate exchange: with one, ``mandatory`` no longer reports an unroutable message.
    return {
        "name": name,
        "vhost": VHOST,
        "type": kind,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queues(route: Route) -> list[dict[str, object]]:
    log = [_queue(route.log, "stream")] if route.logged else []
    return [*(_queue(name) for name in queues(route)), *log]


def _queue(name: str, kind: str = "quorum") -> dict[str, object]:
    return {
        "name": name,
        "vhost": VHOST,
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": kind},
    }


def _bindings(route: Route) -> list[dict[str, object]]:
    return [
        _binding(route.name, route.queue, "#"),
        _binding(route.return_exchange, route.queue, ""),
        *(_binding(step, step, "") for step in route.retries),
        _binding(route.dead_letter_exchange, route.dead_letter_queue, ""),
        *([_binding(route.name, route.log, "#")] if route.logged else []),
    ]


def _binding(source: str, queue: str, routing_key: str) -> dict[str, object]:
    return {
        "source": source,
        "vhost": VHOST,
        "destination": queue,
        "destination_type": "queue",
        "routing_key": routing_key,
        "arguments": {},
    }


if __name__ == "__main__":
    print(json.dumps(definitions(), indent=2))  # noqa: T201 - the definitions file itself
