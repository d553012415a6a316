"""The same seed breaks the same things at the same moments."""

from itertools import pairwise

import pytest

from tools.chaos.schedule import (
    BROKER_SECONDS,
    LINKS,
    MODES,
    Fault,
    Kind,
    instances,
    plan,
    scale,
    service_of,
)

SHORT_SECONDS = 165.0
SEEDS = range(20)


def outages(faults: list[Fault]) -> list[Fault]:
    beside = (Kind.KILL, Kind.ROW_LOCK, Kind.LOG_DELETED)
    return [fault for fault in faults if fault.kind not in beside]


def test_the_same_seed_gives_the_same_faults() -> None:
    assert plan(7, SHORT_SECONDS) == plan(7, SHORT_SECONDS)
    assert plan(7, SHORT_SECONDS) != plan(8, SHORT_SECONDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_run_has_every_kind_and_every_way_to_break_a_link(seed: int) -> None:
    faults = plan(seed, SHORT_SECONDS)

    links = [fault for fault in faults if fault.kind is Kind.LINK]
    assert set(scale(faults)) == {kind.value for kind in Kind}
    assert {fault.mode for fault in links} == set(MODES)
    assert {fault.target.partition("/")[0] for fault in links} == set(LINKS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("seconds", [60.0, SHORT_SECONDS, 360.0])
def test_outages_come_one_after_the_other_and_end_in_time(seed: int, seconds: float) -> None:
    faults = plan(seed, seconds)

    assert all(before.ends < after.at for before, after in pairwise(outages(faults)))
    assert all(fault.ends <= seconds for fault in faults)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_broker_is_left_alone_in_its_first_ten_seconds(seed: int) -> None:
    early = [fault for fault in plan(seed, SHORT_SECONDS) if fault.at < 10]

    assert not {Kind.BROKER_KILL, Kind.BROKER_RESTART} & {fault.kind for fault in early}
    assert BROKER_SECONDS > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_no_service_loses_both_instances_while_one_is_frozen(seed: int) -> None:
    faults = plan(seed, SHORT_SECONDS)

    for freeze in (fault for fault in faults if fault.kind is Kind.FREEZE):
        meanwhile = [f for f in faults if freeze.at <= f.at <= freeze.ends and f is not freeze]
        assert service_of(freeze.target) not in {service_of(fault.target) for fault in meanwhile}


def test_every_instance_is_killed() -> None:
    killed = {fault.target for fault in plan(1, 360) if fault.kind is Kind.KILL}

    assert killed == set(instances())
