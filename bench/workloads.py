"""All workloads in their order."""

from collections.abc import Callable, Iterable

from bench import pipeline
from bench.arena import Arena
from bench.arguments import Sizes
from bench.comparison import Comparison

AGAINST_PEER = {"burst", "steady", "accept"}
"""Workloads that need the peer."""

STEADY_RATES = (50, 200)
"""Registrations a second."""


def measure(
    arena: Arena, wanted: Iterable[str], sizes: Sizes, say: Callable[[str], None]
) -> dict[str, Comparison]:
    """Run the workloads; their comparisons by name."""
    found: dict[str, Comparison] = {}
    pipeline.warm_up(arena)
    if "burst" in wanted:
        found["burst"] = pipeline.burst(arena, rounds=sizes.rounds, number=sizes.count, say=say)
    if "steady" in wanted:
        for rate in STEADY_RATES:
            steady = pipeline.steady(
                arena, rate=rate, rounds=sizes.rounds, seconds=sizes.seconds, say=say
            )
            found[steady.name] = steady
    return found
