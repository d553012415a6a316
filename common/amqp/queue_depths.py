"""How many messages of a route are where, and whether its work queue is bound."""

from dataclasses import dataclass
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
    """Among the dead letters, without those that a reader holds just now."""

    unacknowledged: int | None
    """Held by consumers; None: unknown."""

    bound: bool | None
    """Whether the exchange leads into the work queue; None: unknown."""

    @property
    def pending(self) -> int:
        """All that are in the work queue, held by consumers, or waiting to be retried."""
        return self.ready + self.retrying + (self.unacknowledged or 0)


class QueueDepths:
    """Reads the depths of one route's queues: over AMQP, and the management API if there is one.

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

    async def read(self) -> QueueDepth:
        """Read how many messages are where now.

        Raises:
            BrokerUnavailableError: The broker does not answer.
            TopologyMissingError: One of the queues does not exist.
        """
        # What consumers hold comes first: a message that they pass to a retry step or the
        # dead letters meanwhile is seen there.
        rows, bound = await self._ask_management()
        route = self._route
        names = [route.queue, *route.retries, route.dead_letter_queue]
        ready = await self._reader.count_ready(names)
        if ready is None:
            ready = {name: figures(rows, name)["messages_ready"] for name in names}
        work = next((row for row in rows if row["name"] == route.queue), None)
        return QueueDepth(
            ready=ready[route.queue],
            retrying=sum(ready[step] for step in route.retries),
            dead=ready[route.dead_letter_queue],
            unacknowledged=work.get("messages_unacknowledged", 0) if work else None,
            bound=bound,
        )

    async def _ask_management(self) -> tuple[list[dict[str, Any]], bool | None]:
        """Rows of queues, and whether the work queue is bound; none and None without an answer."""
        if self._management is None:
            return [], None
        try:
            queues, bindings = await self._management.select("queues", "bindings")
        except BrokerUnavailableError as error:
            log.info("management.unavailable", reason=error.detail)
            return [], None
        wanted = (self._route.name, self._route.queue, "#")
        return queues, any(
            (each["source"], each["destination"], each["routing_key"]) == wanted
            for each in bindings
        )
