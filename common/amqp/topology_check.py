"""Compares the broker with ``common.contracts.topology``: what is missing, what differs."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import AnyHttpUrl

from common.amqp.management import ManagementApi
from common.contracts import topology
from common.errors import BrokerUnavailableError, TopologyMissingError

SECONDS_BETWEEN = 15.0
"""How long one answer is believed; the management API is not free."""


ALARM_SECONDS = 5.0
"""How long "no alarm" is believed."""


class BrokerCheck:
    """Asks the management API whether bindings and policies are as they should be.

    A lost binding or policy shows nowhere else: a message that a queue's policy fails to
    dead-letter is just gone. Only the service's own routes: what others miss stops nobody here.
    """

    def __init__(self, url: AnyHttpUrl | str, service: str) -> None:
        self._routes = topology.BROKER_USERS[service].routes
        self._management = ManagementApi(url)
        self._checked_at = 0.0
        self._differences: list[str] = []

    async def check(self) -> None:
        """Raise TopologyMissingError naming what differs."""
        if time.monotonic() - self._checked_at > SECONDS_BETWEEN or self._differences:
            self._differences = await self._compare()
            self._checked_at = time.monotonic()
        if self._differences:
            raise TopologyMissingError(
                f"The broker differs from rabbitmq/definitions.json: "
                f"{'; '.join(self._differences[:5])}. Import that file."
            )

    async def _compare(self) -> list[str]:
        queues, bindings = await self._management.select("queues", "bindings")
        return differences(queues, bindings, self._routes)


class AlarmCheck:
    """Asks the management API whether the broker takes messages at all.

    A connection is told of an alarm when it publishes: one on which nobody does would call
    itself able until the first message is refused.
    """

    def __init__(self, url: AnyHttpUrl | str) -> None:
        self._management = ManagementApi(url)
        self._checked_at = -math.inf
        self._alarms: list[str] = []

    async def check(self) -> None:
        """Raise BrokerUnavailableError naming what it is short of; not if nobody can be asked."""
        if time.monotonic() - self._checked_at > ALARM_SECONDS or self._alarms:
            with suppress(BrokerUnavailableError):
                self._alarms = await self._management.select_alarms()
            self._checked_at = time.monotonic()
        if self._alarms:
            raise BrokerUnavailableError(
                f"The broker takes no messages: {'; '.join(self._alarms)}."
            )


def differences(
    queues: Iterable[dict[str, Any]],
    bindings: Iterable[dict[str, Any]],
    routes: Sequence[topology.Route] = topology.ROUTES,
) -> list[str]:
    """What the broker lacks for these routes, in words; empty if all is well."""
    wanted: Any = topology.definitions(routes)
    present = {queue["name"]: queue for queue in queues}
    bound = {(row["source"], row["destination"], row["routing_key"]) for row in bindings}
    policies = {policy["name"]: policy["definition"] for policy in wanted["policies"]}
    missing = []
    for queue in wanted["queues"]:
        name = queue["name"]
        policy = policies[_policy_of(name)]
        if name not in present:
            missing.append(f"queue {name} is missing")
        # Said with the queue's first statistics, up to 10 s after the broker started; a queue
        # without a policy then says {}.
        elif present[name].get("effective_policy_definition", policy) != policy:
            missing.append(f"queue {name} lacks its policy")
    missing += [
        f"binding {binding['source']} to {binding['destination']} is missing"
        for binding in wanted["bindings"]
        if (binding["source"], binding["destination"], binding["routing_key"]) not in bound
    ]
    return missing


def _policy_of(queue: str) -> str:
    """Name of the policy that applies to a queue; one per route for all its retry steps."""
    head, retry, _ = queue.partition(".retry.")
    return f"{head}.retry" if retry else queue
