"""Each service may do at the broker what its code does there, by the rules of every RabbitMQ."""

from importlib import import_module

import pytest
from aiohttp.test_utils import TestClient, TestServer

from common.amqp import stream
from common.amqp.dead_letter_queue import DeadLetterQueue
from common.amqp.stream import StreamReader
from common.contracts.topology import BROKER_USERS, MONITOR, ROUTES, permissions
from tests.amqp import eventually
from tests.permission_broker import PASSIVE_RULES, running_permission_broker
from tests.services import REQUIRED, settings_class

UP_TO_DATE = [rules for rules in PASSIVE_RULES if rules != "4.2.6 and 4.3.0"]


@pytest.mark.parametrize("rules", PASSIVE_RULES)
@pytest.mark.parametrize("service", BROKER_USERS)
async def test_service_reaches_all_that_it_needs_at_the_broker(
    service: str,
    rules: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    async with running_permission_broker(PASSIVE_RULES[rules]) as broker:
        given = {**REQUIRED[service], "queue_url": broker.url(service)}
        app = import_module(f"{service}.app").build_app(settings_class(service)(**given))
        async with TestClient(TestServer(app)) as client:

            async def is_connected() -> bool:
                said = (await (await client.get("/health")).json())["dependencies"]
                links = {name: said[name] for name in ("publisher", "consumer") if name in said}
                return all(link["ready"] for link in links.values())

            await eventually(is_connected, "connecting")

        if rules in UP_TO_DATE:
            assert broker.refused == set()
        assert {asked for asked in broker.asked if " declare " in asked} == {
            f"{service}: declare {name}" for name in _declared(service)
        }


def _declared(service: str) -> set[str]:
    user = BROKER_USERS[service]
    return {*user.exchanges, *user.declared_queues} - (
        {route.dead_letter_queue for route in user.redrives if route not in user.consumes}
    )


@pytest.mark.parametrize("rules", UP_TO_DATE)
async def test_the_receiver_may_count_and_read_what_it_accounts_for(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FIRST_SECONDS", 0.02)  # no message will come
    async with running_permission_broker(PASSIVE_RULES[rules]) as broker:
        url = broker.url("queue_receiver")
        async with StreamReader(url, service="queue_receiver") as reader:
            for route in BROKER_USERS["queue_receiver"].audits:
                queues = [route.queue, *route.retries, route.dead_letter_queue]
                assert await reader.count_ready(queues) == dict.fromkeys(queues, 0)
                assert await reader.read(route.log, "first", lambda *_: None, limit=1) == []
        for route in BROKER_USERS["queue_receiver"].redrives:
            dead_letters = DeadLetterQueue(url, route, service="queue_receiver")
            async with dead_letters.held() as held:
                assert held.messages == []

        assert broker.refused == set()


def test_no_service_may_configure_anything() -> None:
    assert {permissions(user)["configure"] for user in (*BROKER_USERS, MONITOR)} == {"^$"}


def test_a_queue_that_a_service_only_looks_at_can_not_be_read_by_it() -> None:
    for route in ROUTES:
        for name, user in BROKER_USERS.items():
            readers = [*user.consumes, *user.redrives]
            if route not in readers:
                assert route.dead_letter_queue not in permissions(name)["read"]
