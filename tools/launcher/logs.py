"""``logs``: what all parts wrote, one readable line each, by time; and keeping logs bounded.

Each part writes in its own way: the services JSON, RabbitMQ, PostgreSQL and the launcher lines
that begin with their time. What has none goes with the line above it.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.launcher.errors import LauncherError
from tools.launcher.terminal import Terminal, printable

SHOWN = 200
"""Lines that are shown of all parts together, unless told otherwise."""

FOLLOW_SECONDS = 0.2
"""Between two looks for more."""

LARGEST_LOG = 16 * 1024 * 1024
"""Bytes; a log that is larger becomes ``NAME.log.1``, in the place of the one before."""

OLDEST_SECONDS = 7 * 24 * 3600.0
"""A log whose first line is older becomes ``NAME.log.1``, too: what is in it is gone in two weeks
at the latest."""

BLOCK = 64 * 1024

STAMP = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?) ?(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)? "
)
RABBITMQ = re.compile(r"\[(?P<level>[a-z]+) *\] (?:<[\d.]+> )?")
PYTHON = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
POSTGRES = re.compile(r"\[\d+\] (?P<level>[A-Z]+\d?): +")

LEVELS = {"log": "info", "notice": "info", "hint": "info", "detail": "info", "statement": "info"}
"""PostgreSQL's words for what others call so."""

_HEAD = ("timestamp", "level", "service", "event")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a log."""

    time: float
    """Seconds since 1970; of the line above where it has none of its own."""
    part: str
    level: str
    text: str
    raw: str
    is_json: bool = False
    """Whether it was written for programs."""

    def readable(self) -> str:
        """The line for a person: time in UTC, part, level, event with its facts."""
        moment = datetime.fromtimestamp(self.time, UTC)
        stamp = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"
        return printable(f"{stamp} {self.part:<16} {self.level:<7} {self.text}").rstrip()

    def as_json(self) -> str:
        """The line for a program: as it is where it is JSON already."""
        if self.is_json:
            return self.raw
        moment = datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps(
            {"timestamp": moment, "level": self.level, "service": self.part, "event": self.text}
        )


def parse(raw: str, *, part: str, before: float) -> LogLine:
    """A line in any of the forms; ``before`` is the time of the line above it."""
    if raw.startswith("{"):
        with suppress(ValueError):
            return _parse_json(json.loads(raw), raw, part, before)
    found = STAMP.match(raw)
    if found is None:
        return LogLine(time=before, part=part, level="", text=raw.strip(), raw=raw)
    text, level = raw[found.end() :], "info"
    if named := RABBITMQ.match(text) or POSTGRES.match(text) or PYTHON.match(text):
        level = LEVELS.get(named["level"].lower(), named["level"].lower())
        text = text[named.end() :]
    moment = _seconds(found["time"], found["zone"], before)
    return LogLine(time=moment, part=part, level=level, text=text.strip(), raw=raw)


def _parse_json(found: Mapping[str, Any], raw: str, part: str, before: float) -> LogLine:
    facts = [f"{name}={_plain(value)}" for name, value in found.items() if name not in _HEAD]
    return LogLine(
        time=_seconds(str(found.get("timestamp", "")), None, before),
        part=part,
        level=str(found.get("level", "")),
        text=" ".join([str(found.get("event", "")), *facts]),
        raw=raw,
        is_json=True,
    )


def _plain(value: Any) -> str:
    """A value in one line: exceptions by kind and reason, texts with blanks in quotes."""
    if isinstance(value, list) and all(isinstance(item, dict) and "type" in item for item in value):
        return " from ".join(
            f"{item['type']}{_quoted(item.get('reason') or '')}{_place(item.get('frames'))}"
            for item in value
        )
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if re.search(r'[\s"=]', value) else value
    return json.dumps(value, ensure_ascii=False)


def _quoted(reason: str) -> str:
    return f" {json.dumps(reason, ensure_ascii=False)}" if reason else ""


def _place(frames: Any) -> str:
    return f" at {frames[-1]}" if frames else ""


def _seconds(moment: str, zone: str | None, before: float) -> float:
    named = "+00:00" if zone in {None, "Z", "UTC", "GMT"} else zone
    text = moment.replace(",", ".").replace("Z", "")
    try:
        found = datetime.fromisoformat(text)
        aware = found if found.tzinfo else datetime.fromisoformat(f"{text}{named}")
    except ValueError:
        return before
    return aware.timestamp()


def show(
    folder: Path,
    part: str | None,
    terminal: Terminal,
    *,
    lines: int | None = None,
    follow: bool = False,
    as_json: bool = False,
) -> None:
    """Print the log of one part, or the last lines of all; with ``follow`` until interrupted.

    Raises:
        LauncherError: There is no such log.
    """
    if not any(folder.glob("*.log")):
        raise LauncherError(
            f"There are no logs in {folder}: nothing ran with these data. Others are named by"
            " --port-offset or --data."
        )
    present = _logs(folder, None)
    if part is not None and part not in present:
        raise LauncherError(f"There is no log of {part}. There are: {', '.join(present)}")

    def write(found: Iterable[LogLine]) -> None:
        for line in found:
            terminal.say(line.as_json() if as_json else _coloured(line, terminal))

    wanted = lines if lines is not None or part else SHOWN
    logs = _logs(folder, part)
    # First the ends, then what is before them: nothing that is written meanwhile is left out.
    tails = {name: Tail(path) for name, path in logs.items()}
    found = [line for name, path in logs.items() for line in _whole(name, path, wanted)]
    found.sort(key=lambda line: line.time)
    write(found[-wanted:] if wanted else found)
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for name, path in _logs(folder, part).items():
            tails.setdefault(name, Tail(path, position=0))
        added = [line for name, tail in tails.items() for line in tail.added(name)]
        write(sorted(added, key=lambda line: line.time))


def _logs(folder: Path, part: str | None) -> dict[str, Path]:
    """Part to its log."""
    # RabbitMQ has a second log, of its feature flags, under its node's name: no part of its own.
    found = {path.stem: path for path in sorted(folder.glob("*.log")) if "@" not in path.stem}
    return found if part is None else {part: found[part]}


def _coloured(line: LogLine, terminal: Terminal) -> str:
    text = line.readable()
    if not terminal.colourful or line.level not in {"warning", "error", "critical", "fatal"}:
        return text
    return f"\033[{33 if line.level == 'warning' else 31}m{text}\033[0m"


def _whole(part: str, log: Path, limit: int | None) -> list[LogLine]:
    """The lines of a log, with those of the one before it, or the last ``limit`` of them."""
    older = log.with_suffix(".log.1")
    texts = _last_texts(log, limit)
    if older.exists() and (limit is None or len(texts) < limit):
        texts = _last_texts(older, None if limit is None else limit - len(texts)) + texts
    return _parsed(part, texts, _written(log))


def _parsed(part: str, texts: Iterable[str], before: float) -> list[LogLine]:
    """The lines; those above the first that has a time get that one's."""
    found: list[LogLine] = []
    untimed: list[str] = []
    at: float | None = None
    for text in texts:
        line = parse(text, part=part, before=-1.0 if at is None else at)
        if line.time < 0:
            untimed.append(text)
            continue
        if at is None:
            found += [parse(early, part=part, before=line.time) for early in untimed]
        at = line.time
        found.append(line)
    return found if at is not None else [parse(text, part=part, before=before) for text in untimed]


def _written(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except OSError:
        return time.time()


def _last_texts(log: Path, limit: int | None, *, since: int = 0) -> list[str]:
    """The last lines behind byte ``since``, read from the end of the file."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            begin = end
            content = b""
            while begin > since and (limit is None or content.count(b"\n") <= limit):
                step = min(BLOCK, begin - since)
                begin = file.seek(begin - step)
                content = file.read(step) + content
    except OSError:
        return []
    texts = content.decode("utf-8", "replace").splitlines()
    if begin > since:
        texts = texts[1:]  # it may be half a line
    return texts if limit is None else texts[len(texts) - min(limit, len(texts)) :]


def last_lines(log: Path, count: int, *, since: int = 0) -> list[str]:
    """The last lines behind byte ``since``, for a person: time of day, level, text."""
    texts = _last_texts(log, count, since=since)
    return [
        printable(f"{datetime.fromtimestamp(line.time, UTC):%H:%M:%S} {line.level:<7} {line.text}")
        for line in _parsed(log.stem, texts, _written(log))
    ]


class Tail:
    """What is added to a log from now on."""

    def __init__(self, log: Path, *, position: int | None = None) -> None:
        self._log = log
        self._position = log.stat().st_size if position is None else position
        self._time = time.time()

    def texts(self) -> list[str]:
        """The lines that are complete by now."""
        try:
            with self._log.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0  # it was begun anew
                file.seek(self._position)
                added = file.read()
        except OSError:
            return []
        complete = added[: added.rfind(b"\n") + 1]
        self._position += len(complete)
        return complete.decode("utf-8", "replace").splitlines()

    def added(self, part: str) -> Iterator[LogLine]:
        """The same, read."""
        for text in self.texts():
            line = parse(text, part=part, before=self._time)
            self._time = line.time
            yield line


def keep_bounded(
    folder: Path, *, largest: int = LARGEST_LOG, now: Callable[[], float] = time.time
) -> None:
    """Begin logs anew that have grown too large or too old; each keeps the one before.

    Their programs write on with the file that they have open, at its end, which is its beginning
    then. A line that is written between the last copying and the cut is lost.
    """
    for log in folder.glob("*.log"):
        with suppress(OSError):
            size = log.stat().st_size
            if size > largest or (size and _begun(log) < now() - OLDEST_SECONDS):
                _begin_anew(log)
        with suppress(OSError):
            older = log.with_suffix(".log.1")
            if older.stat().st_mtime < now() - OLDEST_SECONDS:
                older.unlink()


def _begun(log: Path) -> float:
    """When the first line was written."""
    with log.open("rb") as file:
        head = file.read(BLOCK).decode("utf-8", "replace").splitlines()
    lines = _parsed(log.stem, head, _written(log))
    return lines[0].time if lines else time.time()


def _begin_anew(log: Path) -> None:
    older = log.with_suffix(".log.1")
    fresh = older.with_suffix(".new")
    with log.open("r+b") as source, fresh.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        shutil.copyfileobj(source, target)  # what was written meanwhile
        source.truncate(0)
    fresh.chmod(log.stat().st_mode & 0o777)
    fresh.replace(older)
