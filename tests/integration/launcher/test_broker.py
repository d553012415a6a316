"""The private broker as the launcher makes it."""

import socket
from dataclasses import asdict
from typing import Any

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from common.contracts.topology import BROKER_USERS, USER_REGISTRATION, definitions
from tests.amqp import eventually
from tests.backends import TestBroker, queue_names
from tools.launcher.confirming import QUEUE as PROBE
from tools.launcher.memory import available_memory

MARK = 'logger:error("the mark of the test", #{domain => [rabbitmq, queue]})'
"""Erlang: an entry as RabbitMQ itself writes it."""


def test_broker_has_the_whole_topology(broker: TestBroker) -> None:
    queues = {queue["name"]: queue["type"] for queue in broker.management("GET", "/api/queues")}

    queues.pop(PROBE, None)  # of who asks whether messages are confirmed
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


def test_the_log_of_a_broker_tells_nothing_of_messages_when_a_process_crashes(
    broker: TestBroker,
) -> None:
    if broker.native is None:
        pytest.skip("only the launcher's own broker can be made to crash")
    log, address = broker.native.node().log, "ada@example.org"
    begin = log.stat().st_size
    crash = "proc_lib:spawn(fun() -> exit({noproc, Body}) end)"
    broker.native.ctl("eval", f'Body = <<"{address}">>, {crash}, timer:sleep(200), {MARK}.')

    written = log.read_bytes()[begin:].decode()
    assert "the mark of the test" in written  # RabbitMQ's own lines are kept
    assert address not in written


async def test_a_broker_knows_the_memory_that_it_may_use_and_keeps_a_small_log(
    broker: TestBroker,
) -> None:
    if broker.native is None:
        pytest.skip("only the launcher's own broker is told")

    def memory_limit() -> Any:  # said with the node's first statistics
        return broker.management("GET", "/api/nodes")[0].get("mem_limit")

    # RabbitMQ leaves a part of what it is told to others: 0.4 or 0.6 of it.
    limit = await eventually(memory_limit, "telling the limit")
    assert available_memory() // 3 < limit < available_memory()
    size = "maps:get(wal_max_size_bytes, ra_system:fetch(quorum_queues))."
    assert int(broker.native.ctl("eval", size)) == 64 * 1024**2
