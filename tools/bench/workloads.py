"""All workloads in their order."""

from collections.abc import Callable, Collection

from tools.bench import pipeline, scale, users, waiting
from tools.bench.arena import OURS, Arena
from tools.bench.arguments import Sizes
from tools.bench.comparison import Comparison

AGAINST_PEER = {"burst", "steady", "accept"}
"""Workloads that need the peer."""

WITH_MAILS = AGAINST_PEER | {"scale", "backlog"}
"""Workloads of the whole pipeline, which is to be warm."""

STEADY_RATES = (50, 200)
"""Registrations a second."""


def measure(
    arena: Arena, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    """Run the workloads; their comparisons by name."""
    # First, so that the memory of a report is not what bursts have left behind.
    of_a_large_table = _of_a_large_table(arena, wanted, sizes, say)
    if WITH_MAILS & set(wanted):
        pipeline.warm_up(arena)
    found = _compared_with_peer(arena, wanted, sizes, say)
    rounds, number = sizes.rounds, sizes.count
    if "scale" in wanted:
        found["scale"] = scale.scale(arena, rounds=rounds, number=number, say=say)
    if "backlog" in wanted:
        bursts = found["burst"].runs[OURS] if "burst" in found else ()
        found["backlog"] = waiting.backlog(
            arena, number=sizes.backlog, burst_number=number, bursts=bursts, say=say
        )
    return found | of_a_large_table


def _compared_with_peer(
    arena: Arena, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    found: dict[str, Comparison] = {}
    rounds, number = sizes.rounds, sizes.count
    if "steady" in wanted:
        # Before bursts: the ledger and the disks are busy for some time with what they leave.
        for rate in STEADY_RATES:
            found[f"steady {rate}/s"] = pipeline.steady(
                arena, rate=rate, rounds=rounds, seconds=sizes.seconds, say=say
            )
    if "burst" in wanted:
        found["burst"] = pipeline.burst(arena, rounds=rounds, number=number, say=say)
    if "accept" in wanted:
        found["accept"] = waiting.accept(arena, rounds=rounds, number=number, say=say)
    return found


def _of_a_large_table(
    arena: Arena, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    if not {"report", "paging"} & set(wanted):
        return {}
    found: dict[str, Comparison] = {}
    users.fill(arena, sizes.users, say)
    if "report" in wanted:
        found["report"] = users.report(arena, rounds=sizes.rounds, number=sizes.users, say=say)
    if "paging" in wanted:
        found["paging"] = users.paging(arena, rounds=sizes.rounds, number=sizes.users, say=say)
    users.empty(arena)
    return found
