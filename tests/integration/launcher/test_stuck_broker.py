"""A broker that answers everybody and confirms nothing, as after a full disk."""

import io
import threading
import time
from dataclasses import replace

import pytest

from common.amqp import management
from tests.amqp import eventually
from tests.backends import TestBroker
from tools.launcher import supervisor as supervisor_module
from tools.launcher.broker import Broker
from tools.launcher.confirming import QUEUE
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import Terminal

STOP_THE_LOG_WRITER = "sys:suspend(ra_log_wal)."
"""Erlang: the process that writes what quorum queues have to keep stands still."""


@pytest.fixture
def native(broker: TestBroker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    if broker.native is None:
        pytest.skip("needs a broker that the tests may break (USERSTREAM_TEST_BACKEND=native)")
    monkeypatch.setattr(management, "ANSWER_SECONDS", 1.0)
    return broker.native


async def test_it_is_found_out_ended_and_started_again(
    native: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "WORK_INTERVAL", 0.2)
    said = io.StringIO()
    supervisor = Supervisor(terminal=Terminal(said), on_change=lambda _: None)
    native.stop()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            supervisor.look(time.monotonic())
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    try:
        supervisor.start([native.epmd()])
        supervisor.start([replace(native.node(), stuck_after=1.0)])
        native.settle()
        assert native.examine().problem == ""
        native.ctl("eval", STOP_THE_LOG_WRITER)
        assert native.examine().needs_restart
        watching.start()

        part = supervisor.parts["rabbitmq"]
        await eventually(lambda: part.restarts == 1, "a restart")
        await eventually(lambda: not native.examine().problem, "confirming again")
        assert native.management("GET", f"/api/queues/%2F/{QUEUE}").get("messages", 0) == 0
        assert "rabbitmq runs, but has not worked" in said.getvalue()
    finally:
        over.set()
        supervisor.give_up()
        if watching.is_alive():
            watching.join()
        supervisor.kill()
        native.start()
