"""How many messages of a route are where, and whether its work queue is bound."""

from dataclasses import dataclass, field
from typing import Any

import structlog

from common.amqp.management import ManagementApi, figures
from common.amqp.stream import StreamReader
from common.contracts.topology import Route
from common.errors import BrokerUnavailableError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """The queues of one route at one moment."""

    ready: int
    """In the work queue, not delivered."""

    retrying: int
    """In the retry steps."""

    dead: int
    """Among the dead letters, without those that somebody looks at just now."""

    unacknowledged: int | None
    """In the hands of consumers; None: nobody knows."""

    bound: bool | None
    """Whether the exchange leads into the work queue; None: nobody knows."""

    @property
    def under_way(self) -> int:
        """All that are in the work queue, in somebody's hands, or waiting to be retried."""
        return self.ready + self.retrying + (self.unacknowledged or 0)


class QueueDepths:
    """Looks at the queues of one route: over AMQP, and over the management API where there is one.

    Args:
        reader: Asks how many are ready; exact at the moment.
        management: Knows what consumers hold (5 s old at most) and what is bound.
        route: Whose queues.
    """

    def __init__(
        self, reader: StreamReader, *, management: ManagementApi | None, route: Route
    ) -> None:
        self._reader = reader
        self._management = management
        self._route = route

    async def look(self) -> QueueDepth:
        """The queues as they are now.

        Raises:
            BrokerUnavailableError: The broker does not answer.
            TopologyMissingError: One of the queues does not exist.
        """
        # What consumers hold comes first: a message that goes from their hands to a retry step
        # or the dead letters meanwhile is seen there.
        managed = await self._managed()
        route = self._route
        names = [route.queue, *route.retries, route.dead_letter_queue]
        ready = await self._reader.count_ready(names)
        if ready is None:
            rows = managed.queues.values()
            ready = {name: figures(rows, name)["messages_ready"] for name in names}
        work = managed.queues.get(route.queue)
        return QueueDepth(
            ready=ready[route.queue],
            retrying=sum(ready[step] for step in route.retries),
            dead=ready[route.dead_letter_queue],
            unacknowledged=work.get("messages_unacknowledged", 0) if work else None,
            bound=managed.bound,
        )

    async def _managed(self) -> "_Managed":
        if self._management is None:
            return _Managed()
        try:
            queues, bindings = await self._management.select("queues", "bindings")
        except BrokerUnavailableError as error:
            log.info("management.unavailable", reason=error.detail)
            return _Managed()
        return _Managed(
            queues={row["name"]: row for row in queues},
            bound=any(map(self._leads_to_work, bindings)),
        )

    def _leads_to_work(self, binding: dict[str, Any]) -> bool:
        wanted = (self._route.name, self._route.queue, "#")
        return (binding["source"], binding["destination"], binding["routing_key"]) == wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Managed:
    """What the management API says; nothing where it is not asked or does not answer."""

    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    bound: bool | None = None
