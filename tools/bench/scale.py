"""The same burst with more and more instances side by side: ``scale``."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace

from tools.bench.comparison import Comparison, Run
from tools.bench.harness import Harness
from tools.bench.http_client import Client, Post, closed_loop, connected
from tools.bench.loop import run
from tools.bench.pipeline import BURST_FIGURES, CONNECTIONS, WARM_UP, people, register
from tools.bench.systems import System
from tools.launcher.ports import HOST
from tools.launcher.processes import Program, start
from tools.launcher.services import READY, answers_ok
from tools.launcher.supervisor import Part

INSTANCES = (1, 2, 3, 4)
"""Of each service that may run several times."""

SCALED = ("frontend", "queue_receiver", "sender")
"""They find their work at the broker. Several database_services need a proxy before them."""


def scale(harness: Harness, *, rounds: int, number: int, say: Callable[[str], None]) -> Comparison:
    """Bursts to 1, 2, 3 and 4 instances of the services that find their work at the broker."""
    runs: dict[str, list[Run]] = {_name(count): [] for count in INSTANCES}
    for turn in range(rounds):
        with ExitStack() as started:
            frontends = [harness.ours.port]
            parts = dict(harness.ours.parts)
            for count in INSTANCES:
                if count > 1:
                    port, more = _start_another(harness, count, started)
                    frontends.append(port)
                    parts |= more
                system = replace(harness.ours, name=_name(count), parts=parts)
                if count > 1:  # the first ones are warm already
                    run(_burst(harness, system, frontends, WARM_UP * count))
                done = run(_burst(harness, system, frontends, number))
                runs[system.name].append(done)
                said = f"{done.figures['registrations_per_s']:,.0f} registrations/s"
                say(f"scale {turn + 1}/{rounds}, {system.name}: {said}")
    return Comparison(
        name="scale",
        how=f"the burst of {number:,} with more instances of frontend, queue_receiver and sender"
        " side by side on the same cores, POSTs dealt out to the frontends.",
        figures=BURST_FIGURES,
        baseline=_name(1),
        runs=runs,
    )


def _name(count: int) -> str:
    return f"{count} of each"


def _start_another(
    harness: Harness, number: int, started: ExitStack
) -> tuple[int, dict[str, Part]]:
    """One more of each; the frontend's port, and the processes."""
    programs = {program.name: program for program in harness.stack.services()}
    parts, frontend = {}, 0
    for service in SCALED:
        port = _free_port()
        program = _another(programs[service], number, port)
        running = start(program)
        started.callback(running.stop)
        parts[program.name] = Part(program, running)
        frontend = port if service == "frontend" else frontend
    for part in parts.values():
        if part.running:
            part.running.wait_until_ready()
    return frontend, parts


def _another(program: Program, number: int, port: int) -> Program:
    return replace(
        program,
        name=f"{program.name} {number}",
        environment={**program.environment, "PORT": str(port)},
        log=program.log.with_stem(f"{program.log.stem}-{number}"),
        is_ready=lambda: answers_ok(port, READY),
    )


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


async def _burst(harness: Harness, system: System, frontends: Sequence[int], number: int) -> Run:
    async def load(_client: Client, posts: Sequence[bytes]) -> list[Post]:
        share = len(frontends)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(port)) for port in frontends]
            made = await asyncio.gather(
                *(
                    closed_loop(client, posts[place::share], connections=CONNECTIONS // share)
                    for place, client in enumerate(clients)
                )
            )
        # In the order of the posts again: the people they are compared with are.
        return [made[place % share][place // share] for place in range(len(posts))]

    return await register(harness, system, people(number), load)
