import os
import subprocess
import sys
import time

import pytest

from tests.polling import PATIENCE_SECONDS, until
from tools.bench.procfs import (
    PAGE_BYTES,
    TICKS_PER_SECOND,
    Meter,
    Stat,
    all_processes,
    family,
    forget_peak,
    measuring,
    parse_stat,
    peak_rss,
)

LINE = (
    "4711 (a (strange) name) S 42 4711 4711 0 -1 4194560 1000 0 0 0 250 50 0 0 20 0 3 0 12345"
    " 104857600 2048 18446744073709551615 1 1 0 0 0 0 0 16781312 134235650 0 0 0 17 1 0 0 0 0 0"
)
"""User mode 250 ticks, kernel mode 50, 2048 pages resident."""


def test_a_line_of_stat_is_read_past_brackets_in_the_name() -> None:
    assert parse_stat(LINE) == Stat(
        parent=42, cpu_seconds=300 / TICKS_PER_SECOND, rss=2048 * PAGE_BYTES
    )


def test_this_process_is_among_all_of_them() -> None:
    me = all_processes()[os.getpid()]

    assert me.parent == os.getppid()
    assert me.rss > 0


def stat(parent: int) -> Stat:
    return Stat(parent=parent, cpu_seconds=0, rss=0)


def test_a_family_is_a_process_with_all_its_descendants() -> None:
    processes = {1: stat(0), 10: stat(1), 11: stat(10), 12: stat(11), 20: stat(1)}

    assert family(10, processes) == {10, 11, 12}
    assert family(99, processes) == set()


@pytest.mark.slow
def test_what_a_process_uses_while_it_is_watched_is_counted() -> None:
    spin = "import time\nwhile time.process_time() < 0.5: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE)
    meter = Meter({"child": child.pid})
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        meter.sample()
        while meter.usage()["child"].cpu_seconds < 0.2:
            assert time.monotonic() < deadline, "it never used the processor"
            meter.sample()
    finally:
        child.communicate(b"\n")

    assert meter.usage()["child"].peak_rss > 1_000_000


@pytest.mark.slow
async def test_processes_are_looked_at_again_and_again() -> None:
    async with measuring({"me": os.getpid()}) as meter:
        await until(lambda: len(meter.samples) >= 3)
        seen = len(meter.samples)

    assert len(meter.samples) == seen + 1


def test_what_a_process_used_before_is_not_counted() -> None:
    meter = Meter({"me": os.getpid()})
    meter.sample()

    assert meter.usage()["me"].cpu_seconds == 0  # one look has no duration


def test_a_process_that_is_gone_counts_for_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    meter = Meter({"gone": child.pid})
    meter.sample()
    meter.sample()

    assert (meter.usage()["gone"].cpu_seconds, meter.usage()["gone"].peak_rss) == (0, 0)


def test_a_part_of_the_time_has_its_own_peak() -> None:
    meter = Meter({"a": 1, "b": 2})
    meter.samples = [
        (100, {"a": 5, "b": 1}),
        (110, {"a": 2, "b": 2}),
        (120, {"a": 1, "b": 9}),
    ]

    assert meter.peak(["a", "b"]) == 10
    assert meter.peak(["a", "b"], end=0.25) == 6
    assert meter.peak(["a"], begin=0.75) == 1


def test_the_peak_of_memory_is_at_least_what_is_resident() -> None:
    forget_peak(os.getpid())
    some = bytearray(b"x") * 30_000_000
    high = peak_rss(os.getpid())

    assert high >= len(some)
