import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from common.database_client import circuit
from common.database_client.circuit import Circuit, State
from tests.polling import until


class Service:
    """Says whether it is ready, when it is told to say anything."""

    def __init__(self) -> None:
        self.ready = False
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def is_ready(self) -> bool:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.ready


def figure() -> float | None:
    return REGISTRY.get_sample_value("userstream_circuit_state", {"upstream": "test"})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def around(service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Circuit]:
    monkeypatch.setattr(circuit, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(circuit, "LONGEST_PAUSE_SECONDS", 0.02)
    around = Circuit("test", is_ready=service.is_ready)
    yield around
    await around.aclose()


async def test_it_is_closed_at_first_and_asks_nobody(around: Circuit, service: Service) -> None:
    await asyncio.sleep(0.05)

    assert around.is_closed
    assert figure() == 0
    assert service.asked == 0


async def test_once_open_it_asks_until_the_service_is_back(
    around: Circuit, service: Service
) -> None:
    with capture_logs() as logged:
        around.open()
        around.open()
        assert (around.state, figure()) == (State.OPEN, 2)
        await until(lambda: service.asked >= 3, "asking again and again")
        assert not around.is_closed
        service.ready = True
        await until(lambda: around.is_closed, "closing")

    assert figure() == 0
    assert [line["event"] for line in logged] == ["circuit.opened", "circuit.closed"]


async def test_while_the_service_is_asked_it_is_half_open(
    around: Circuit, service: Service
) -> None:
    service.gate = asyncio.Event()
    around.open()
    await until(lambda: service.asked == 1, "asking")
    assert (around.state, figure()) == (State.HALF_OPEN, 1)
    assert not around.is_closed
    service.gate.set()
    await until(lambda: around.state is State.OPEN, "opening again")


async def test_it_opens_as_often_as_the_service_goes(around: Circuit, service: Service) -> None:
    service.ready = True
    for times in range(1, 4):
        around.open()
        await until(lambda: around.is_closed, "closing")
        assert service.asked == times


async def test_whoever_ends_it_is_asked_no_more(around: Circuit, service: Service) -> None:
    around.open()
    await around.aclose()
    asked = service.asked
    await asyncio.sleep(0.05)

    assert service.asked == asked
