import pytest

from tools.launcher.errors import LauncherError
from tools.launcher.ports import BASE_PORTS, FIRST_EPHEMERAL, LARGEST_OFFSET, ports


def test_ports_are_the_documented_ones_without_an_offset() -> None:
    assert ports(0)["frontend"] == 3000
    assert ports(0) == BASE_PORTS


def test_ports_all_move_by_the_offset() -> None:
    moved = ports(100)

    assert moved == {name: port + 100 for name, port in BASE_PORTS.items()}


def test_ports_of_one_stack_never_meet() -> None:
    assert len(set(BASE_PORTS.values())) == len(BASE_PORTS)


def test_ports_stay_below_those_of_outgoing_connections() -> None:
    assert max(ports(LARGEST_OFFSET).values()) < FIRST_EPHEMERAL


@pytest.mark.parametrize("offset", [-1, LARGEST_OFFSET + 1, 70_000])
def test_ports_refuse_an_offset_that_leads_out_of_range(offset: int) -> None:
    with pytest.raises(LauncherError, match=f"--port-offset {offset} does not work"):
        ports(offset)
