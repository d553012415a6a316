"""One seed: start, load and faults, heal, drain, count."""

import asyncio
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, field

from tools.chaos.accounting import evaluate
from tools.chaos.driver import Driver
from tools.chaos.harness import Harness, running_harness, stack_to_break
from tools.chaos.inject import Injector
from tools.chaos.interruptible import run_interruptibly
from tools.chaos.observations import drained, gather
from tools.chaos.recovery import Progress, measure
from tools.chaos.report import Run
from tools.chaos.schedule import instances, plan
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import EphemeralStack

INSIST_SECONDS = 60.0
"""After the last registration was due: until what is not promised is given up."""

LIVE_SECONDS, PLAIN_SECONDS = 1.0, 10.0
"""Between two lines of progress on a terminal, and where there is none."""

SETTLE_SECONDS = 10.0
"""Age of the queues before the load begins: a broker killed earlier may lose them (W8)."""


class BrokenPromiseError(Exception):
    """An invariant does not hold; the logs are worth keeping."""

    def __init__(self, run: Run) -> None:
        super().__init__("an invariant is broken")
        self.run = run


@dataclass(slots=True)
class Watcher:
    """Tells a person how far it is."""

    terminal: Terminal
    seed: int
    phase: str = "starting"
    harness: Harness | None = None
    driver: Driver | None = None
    injector: Injector | None = None
    progress: Progress | None = None
    begun: float = field(default_factory=time.monotonic)

    async def watch(self) -> None:
        """Say it again and again until cancelled."""
        live = self.terminal.stream.isatty()
        while True:
            await asyncio.sleep(LIVE_SECONDS if live else PLAIN_SECONDS)
            if live:
                self.terminal.stream.write(f"\r\033[K{self.line()}")
                self.terminal.stream.flush()
            else:
                self.terminal.say(self.line())

    def enter(self, phase: str) -> None:
        """Begin the next phase."""
        self.phase = phase
        lead = "\r\033[K" if self.terminal.stream.isatty() else ""
        self.terminal.say(lead + self.line())

    def line(self) -> str:
        """Phase, faults, and how many registrations have come how far."""
        faults = self.injector.happened if self.injector else []
        active = [each.fault for each in faults if not each.mended]
        now = ", ".join(f"{f.kind.value} {f.target} {f.mode}".strip() for f in active[-3:])
        journal = self.driver.journal if self.driver else None
        stored = self.progress.rows if self.progress else 0
        mailed = len(self.harness.mail_server.taken) if self.harness else 0
        return (
            f"[{time.monotonic() - self.begun:5.0f} s] seed {self.seed}, {self.phase}:"
            f" {len(faults)} faults, accepted {len(journal.accepted) if journal else 0},"
            f" stored {stored}, mailed {mailed}{f'; now: {now}' if now else ''}"
        )


def run_seed(given: Namespace, seed: int, terminal: Terminal) -> Run:
    """Run one seed on a stack of its own.

    Raises:
        BrokenPromiseError: With the run, where an invariant is broken.
        LauncherError: The stack could not be started.
    """
    with stack_to_break(offset=given.port_offset, data=given.data, terminal=terminal) as running:
        run = run_interruptibly(_watched(given, seed, running, terminal))
        if not run.holds:
            raise BrokenPromiseError(run)
        return run


async def _watched(given: Namespace, seed: int, running: EphemeralStack, terminal: Terminal) -> Run:
    watcher = Watcher(terminal, seed)
    async with running_harness(running, seed=seed) as harness:
        watching = asyncio.create_task(watcher.watch())
        try:
            return await _run(given, seed, harness, watcher)
        finally:
            watching.cancel()


async def _run(given: Namespace, seed: int, harness: Harness, watcher: Watcher) -> Run:
    seconds = given.minutes * 60
    driver = Driver(
        seed=seed,
        number=given.registrations,
        seconds=seconds,
        frontends=harness.urls("frontend"),
        reports=harness.urls("report_generator"),
        amqp_url=harness.broker.url(),
    )
    injector = Injector(harness, plan(seed, seconds))
    progress = Progress(harness)
    watcher.harness, watcher.driver = harness, driver
    watcher.injector, watcher.progress = injector, progress
    watcher.enter("letting the queues settle")
    await asyncio.sleep(SETTLE_SECONDS)
    watching = asyncio.create_task(progress.watch())
    try:
        watcher.enter("load and faults")
        driving = asyncio.create_task(driver.run(give_up_after=INSIST_SECONDS))
        await injector.run(time.monotonic())
        watcher.enter("healing")
        await injector.heal()
        await driving
        await _all_ready(harness)
        watcher.enter("draining")
        rest = await drained(harness, driver.journal)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    watcher.enter("counting")
    observations = await gather(harness, driver.journal)
    return Run(
        seed=seed,
        registrations=given.registrations,
        seconds=seconds,
        evaluation=evaluate(observations),
        happened=injector.happened,
        faults=dict(harness.mail_server.faults),
        recovery=measure(injector.happened, observations, progress, harness),
        rest=rest,
        journal=driver.journal,
        notes=harness.notes,
    )


async def _all_ready(harness: Harness) -> None:
    """Wait until every instance can work, a minute at most; the drain tells the rest."""
    with suppress(TimeoutError):
        async with asyncio.timeout(INSIST_SECONDS):
            for instance in instances():
                await _ready(harness, instance)


async def _ready(harness: Harness, instance: str) -> None:
    while not await asyncio.to_thread(harness.is_ready, instance):  # noqa: ASYNC110 - asks afar
        await asyncio.sleep(0.2)
