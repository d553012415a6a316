"""The private broker as the launcher makes it."""

import socket
from dataclasses import asdict

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from common.topology import BROKER_USERS, USER_REGISTRATION, definitions
from tests.backends import TestBroker, queue_names


def test_broker_has_the_whole_topology(broker: TestBroker) -> None:
    queues = {queue["name"]: queue["type"] for queue in broker.management("GET", "/api/queues")}

    assert queues == {**dict.fromkeys(queue_names(), "quorum"), USER_REGISTRATION.log: "stream"}
    policies = {policy["name"]: policy for policy in broker.management("GET", "/api/policies")}
    assert list(policies) == sorted(policy["name"] for policy in definitions()["policies"])  # type: ignore[attr-defined]


def test_broker_keeps_a_small_part_of_its_log_in_memory(broker: TestBroker) -> None:
    if broker.native is None:
        pytest.skip("asks the node itself (USERSTREAM_TEST_BACKEND=native)")

    size = "maps:get(wal_max_size_bytes, ra_system:fetch(quorum_queues))."

    assert broker.native.ctl("eval", size).strip() == str(64 * 1024 * 1024)


async def test_broker_lets_the_frontend_publish_registrations(empty_broker: TestBroker) -> None:
    connection = await aio_pika.connect(empty_broker.url("frontend"))
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)

        confirmed = await exchange.publish(aio_pika.Message(b"{}"), routing_key="any")

    assert confirmed is not None


async def test_broker_lets_no_service_declare_anything(broker: TestBroker) -> None:
    for service in BROKER_USERS:
        connection = await aio_pika.connect(broker.url(service))
        async with connection:
            channel = await connection.channel()
            with pytest.raises(ChannelAccessRefused):
                await channel.declare_queue("intruder", durable=True)


async def test_broker_keeps_confirmed_messages_when_killed_right_after_its_first_start(
    empty_broker: TestBroker,
) -> None:
    connection = await aio_pika.connect(empty_broker.url("frontend"))
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)
        for _ in range(100):
            await exchange.publish(
                aio_pika.Message(b"{}", delivery_mode=aio_pika.DeliveryMode.PERSISTENT), "any"
            )

        empty_broker.kill()
    empty_broker.start()

    connection = await aio_pika.connect(empty_broker.url("queue_receiver"))
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(USER_REGISTRATION.queue, ensure=False)
        for _ in range(100):
            await queue.get(no_ack=True)


def test_broker_listens_on_one_loopback_address_only(broker: TestBroker) -> None:
    if broker.native is None:
        pytest.skip("only the launcher's own broker is bound to loopback")

    for port in asdict(broker.native.ports).values():
        assert _accepts("127.0.0.1", port)
        assert not _accepts("127.0.0.2", port), f"{port} is bound to every address"


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
