"""All workloads in their order."""

from collections.abc import Callable, Collection

from tools.bench import pipeline, scale, users, waiting
from tools.bench.arguments import Sizes
from tools.bench.comparison import Comparison
from tools.bench.harness import OURS, Harness

AGAINST_PEER = {"burst", "steady", "accept"}
"""Workloads that need the peer."""

WITH_MAILS = AGAINST_PEER | {"scale", "backlog"}
"""Workloads of the whole pipeline, which is to be warm."""

STEADY_RATES = (50, 200)
"""Registrations a second."""


def measure(
    harness: Harness, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    """Run the workloads; their comparisons by name."""
    # First, so that the memory of a report is not what bursts have left behind.
    of_a_large_table = _of_a_large_table(harness, wanted, sizes, say)
    if WITH_MAILS & set(wanted):
        pipeline.warm_up(harness)
    found = _compared_with_peer(harness, wanted, sizes, say)
    rounds, number = sizes.rounds, sizes.count
    if "scale" in wanted:
        found["scale"] = scale.scale(harness, rounds=rounds, number=number, say=say)
    if "backlog" in wanted:
        bursts = found["burst"].runs[OURS] if "burst" in found else ()
        found["backlog"] = waiting.backlog(
            harness, number=sizes.backlog, burst_number=number, bursts=bursts, say=say
        )
    return found | of_a_large_table


def _compared_with_peer(
    harness: Harness, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    found: dict[str, Comparison] = {}
    rounds, number = sizes.rounds, sizes.count
    if "steady" in wanted:
        # Before bursts: the ledger and the disks are busy for some time with what they leave.
        for rate in STEADY_RATES:
            found[f"steady {rate}/s"] = pipeline.steady(
                harness, rate=rate, rounds=rounds, seconds=sizes.seconds, say=say
            )
    if "burst" in wanted:
        found["burst"] = pipeline.burst(harness, rounds=rounds, number=number, say=say)
    if "accept" in wanted:
        found["accept"] = waiting.accept(harness, rounds=rounds, number=number, say=say)
    return found


def _of_a_large_table(
    harness: Harness, wanted: Collection[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    if not {"report", "paging"} & set(wanted):
        return {}
    found: dict[str, Comparison] = {}
    users.fill(harness, sizes.users, say)
    if "report" in wanted:
        found["report"] = users.report(harness, rounds=sizes.rounds, number=sizes.users, say=say)
    if "paging" in wanted:
        found["paging"] = users.paging(harness, rounds=sizes.rounds, number=sizes.users, say=say)
    users.empty(harness)
    return found
