"""What the plain wire does where a channel goes; the rest is tested with a real broker."""

import asyncio
import gc
from typing import Any, cast

from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError

from common.amqp.plain_wire import PlainWire


class GoneChannel:
    """A channel that closes between the look and the ack."""

    is_closed = False

    async def basic_ack(self, _tag: int) -> None:
        raise ChannelInvalidStateError("closed")


async def test_an_ack_that_comes_too_late_is_not_reported_as_a_forgotten_failure() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    wire = PlainWire(cast("Channel", GoneChannel()))

    wire.acknowledge(1)
    await wire.drain()
    await asyncio.sleep(0)
    gc.collect()

    assert reported == []
