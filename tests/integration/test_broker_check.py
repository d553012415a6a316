"""The comparison of a broker with the topology, with a real broker that gets damaged."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from common.amqp.management import ManagementApi
from common.amqp.topology_check import AlarmCheck
from common.contracts.topology import USER_REGISTRATION, definitions
from common.errors import BrokerUnavailableError
from rabbitmq import check
from tests.amqp import eventually
from tests.backends import TestBroker

DELETED = USER_REGISTRATION.retry_step(2)


def url_of(broker: TestBroker, user: str, password: str) -> str:
    address = broker.management_url.removeprefix("http://")
    return f"http://{quote(user, safe='')}:{quote(password, safe='')}@{address}"


@pytest.fixture
def url(broker: TestBroker) -> str:
    """The management API with every right."""
    return url_of(broker, *broker.admin)


@pytest.fixture
def damaged(broker: TestBroker) -> Iterator[TestBroker]:
    """The broker without one queue and with somebody else's policy; whole again afterwards."""
    policy = {"pattern": "^report", "definition": {"max-length": 7}, "priority": 9}
    broker.management("DELETE", f"/api/queues/%2F/{DELETED}")
    broker.management("PUT", "/api/policies/%2F/stray", policy | {"apply-to": "queues"})
    try:
        yield broker
    finally:
        broker.management("DELETE", "/api/policies/%2F/stray")
        broker.management("POST", "/api/definitions", definitions())


async def test_a_broker_that_was_provisioned_is_alike(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # What is in force is said with the first statistics, and for a while as it was before.
    await eventually(lambda: check.check(ManagementApi(url)).alike, "being alike")

    assert check.main([url]) == check.ALIKE
    said = capsys.readouterr().out
    assert "compared vhosts, exchanges, queues, bindings, policies, users, permissions" in said
    assert "✗" not in said


async def test_what_is_missing_or_in_the_way_is_named_with_a_remedy(
    damaged: TestBroker, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def named() -> set[str]:
        check.main([url, "--json"])
        return {row["what"] for row in json.loads(capsys.readouterr().out)["differences"]}

    await eventually(lambda: any("of the policy stray" in what for what in named()), "noticing")

    assert damaged is not None
    whats = named()
    assert f"queue {DELETED} is missing" in whats
    assert f"binding {DELETED} to {DELETED} is missing" in whats
    assert not any("user.registration.dlq" in what for what in whats)
    assert check.main([url]) == check.DIFFERENT
    assert "→ Import the topology: rabbitmqctl import_definitions" in capsys.readouterr().out


async def test_who_may_not_see_all_compares_what_may_be_seen(
    broker: TestBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    url = broker.monitor_url

    await eventually(lambda: check.check(ManagementApi(url)).alike, "being alike")

    assert check.main([url]) == check.ALIKE
    assert "users were not compared: only an administrator" in capsys.readouterr().out


async def test_an_alarm_is_known_before_anybody_publishes(broker: TestBroker) -> None:
    if broker.native is None:
        pytest.skip("needs a broker that the tests may stop (USERSTREAM_TEST_BACKEND=native)")
    management = ManagementApi(broker.monitor_url)
    alarms = AlarmCheck(management)
    await alarms.check()
    broker.native.ctl("set_vm_memory_high_watermark", "0")
    try:

        async def names_it() -> bool:
            try:
                await AlarmCheck(management).check()
            except BrokerUnavailableError as error:
                return "short of memory" in error.detail
            return False

        await eventually(names_it, "naming the alarm")
    finally:
        broker.native.ctl("set_vm_memory_high_watermark", "absolute", "512MB")

    async def is_over() -> bool:
        try:
            await alarms.check()
        except BrokerUnavailableError:
            return False
        return True

    await eventually(is_over, "the end of the alarm")


async def test_who_may_not_see_nodes_or_cannot_be_asked_stops_nobody(broker: TestBroker) -> None:
    await AlarmCheck(ManagementApi(url_of(broker, "nobody", "nothing"))).check()
    await AlarmCheck(ManagementApi("http://guest:guest@127.0.0.1:9")).check()


def test_a_wrong_password_is_no_comparison(
    broker: TestBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([url_of(broker, "nobody", "nothing")]) == check.NO_ANSWER

    assert "refuses the user nobody" in capsys.readouterr().err


def test_what_is_no_management_api_is_said_to_be_none(
    broker: TestBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    address = broker.admin_url.rpartition("@")[2].partition("/")[0]

    assert check.main([f"http://{address}"]) == check.NO_ANSWER
    assert check.main(["ftp://somewhere"]) == check.NO_ANSWER

    said = capsys.readouterr().err
    assert "No management API answers" in said
    assert "The URL should look like" in said
