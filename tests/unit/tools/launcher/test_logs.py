import io
import json
import os
import time
from pathlib import Path

import pytest

from tools.launcher import logs
from tools.launcher.errors import LauncherError
from tools.launcher.logs import (
    LARGEST_LOG,
    OLDEST_SECONDS,
    Tail,
    keep_bounded,
    last_lines,
    parse,
    show,
)
from tools.launcher.terminal import Terminal

SENDER = (
    '{"event":"email.sent","template":"welcome","level":"info","reply":"250 2.0.0 Ok",'
    '"timestamp":"2026-01-31T09:30:00.250000Z","service":"sender"}'
)
RABBITMQ = "2026-01-31 10:30:00.100000+01:00 [warning] <0.1801.0> closing AMQP connection"
POSTGRES = "2026-01-31 09:30:00.200 UTC [123] ERROR:  duplicate key value"
MAILBOX = "2026-01-31 09:30:00,300 INFO mail kept"
LAUNCHER = "2026-01-31T09:30:01Z   ✓ Starting sender (0.2 s)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written = {
        "sender": SENDER,
        "rabbitmq": RABBITMQ,
        "postgres": POSTGRES,
        "mailbox": MAILBOX,
        "launcher": LAUNCHER,
    }
    for part, line in written.items():
        (tmp_path / f"{part}.log").write_text(f"{line}\n", "utf-8")
    return tmp_path


SENT = 'email.sent template=welcome reply="250 2.0.0 Ok"'


def shown(folder: Path, part: str | None = None, **options: object) -> list[str]:
    stream = io.StringIO()
    show(folder, part, Terminal(stream), **options)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_all_parts_are_shown_by_time_one_readable_line_each(folder: Path) -> None:
    assert shown(folder) == [
        "2026-01-31 09:30:00.100 rabbitmq         warning closing AMQP connection",
        "2026-01-31 09:30:00.200 postgres         error   duplicate key value",
        f"2026-01-31 09:30:00.250 sender           info    {SENT}",
        "2026-01-31 09:30:00.300 mailbox          info    mail kept",
        "2026-01-31 09:30:01.000 launcher         info    ✓ Starting sender (0.2 s)",
    ]


def test_one_part_is_shown_alone_and_whole(folder: Path) -> None:
    (folder / "sender.log.1").write_text(f"{SENDER}\n" * 500, "utf-8")

    lines = shown(folder, "sender")

    assert len(lines) == 501
    assert all("email.sent" in line for line in lines)


def test_of_all_the_last_lines_are_shown(folder: Path) -> None:
    (folder / "sender.log").write_text(f"{SENDER}\n" * 5000, "utf-8")

    assert len(shown(folder)) == logs.SHOWN
    assert shown(folder, lines=2)[-1].endswith("Starting sender (0.2 s)")
    assert len(shown(folder, lines=2)) == 2


def test_for_programs_every_line_is_json_and_ours_are_as_they_were_written(folder: Path) -> None:
    lines = shown(folder, as_json=True)

    assert SENDER in lines
    found = [json.loads(line) for line in lines]
    assert [line["service"] for line in found][:2] == ["rabbitmq", "postgres"]
    assert {"timestamp", "level", "event"} <= set(found[0])


def test_a_line_without_a_time_stays_with_the_line_above_it(folder: Path) -> None:
    with (folder / "rabbitmq.log").open("a", encoding="utf-8") as log:
        log.write("    further words\n")

    assert shown(folder)[1] == "2026-01-31 09:30:00.100 rabbitmq                 further words"


def test_an_exception_takes_one_line() -> None:
    error = {"type": "builtins.OSError", "reason": "no space", "frames": ["a.py:1 in f"]}
    raw = json.dumps({"event": "it.failed", "level": "error", "exception": [error, error]})

    text = parse(raw, part="sender", before=0).text

    assert text == (
        'it.failed exception=builtins.OSError "no space" at a.py:1 in f'
        ' from builtins.OSError "no space" at a.py:1 in f'
    )


@pytest.mark.parametrize(
    "raw", ["{", "{}", "[]", "", "2026-99-99T99:99:99Z x", '{"timestamp": 5}', "\x1b[31mred", "\0"]
)
def test_no_line_is_too_strange(raw: str) -> None:
    line = parse(raw, part="sender", before=1.0)

    assert line.time == 1.0
    assert line.readable().isprintable()
    json.loads(line.as_json())


def test_an_unknown_part_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(LauncherError, match="There are: launcher, mailbox, postgres"):
        shown(folder, "reciever")


def test_the_brokers_log_of_its_features_is_no_part(folder: Path) -> None:
    (folder / "userstream@localhost_upgrade.log").write_text(f"{RABBITMQ}\n", "utf-8")

    assert len(shown(folder)) == 5
    with pytest.raises(LauncherError, match=r"sender$"):
        shown(folder, "userstream@localhost_upgrade")


def test_where_nothing_ran_it_says_which_options_name_other_data(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="--port-offset or --data"):
        shown(tmp_path)


def test_the_end_of_a_log_is_told_without_what_was_there_before(tmp_path: Path) -> None:
    log = tmp_path / "sender.log"
    log.write_text("an old failure\n", "utf-8")
    begin = log.stat().st_size
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{SENDER}\nsender: SMTP_PORT is wrong\n")

    lines = last_lines(log, 15, since=begin)

    assert [line.split()[1:] for line in lines] == [
        ["info", "email.sent", "template=welcome", 'reply="250', "2.0.0", 'Ok"'],
        ["sender:", "SMTP_PORT", "is", "wrong"],
    ]


def test_a_log_that_grew_too_large_is_begun_anew_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "sender.log"
    with log.open("ab", buffering=0) as writer:
        tail = Tail(log)
        writer.write(f"{SENDER}\n".encode() * 10)
        assert len(tail.texts()) == 10

        keep_bounded(tmp_path, largest=100)
        writer.write(f"{SENDER}\n".encode())

    assert log.read_text("utf-8") == f"{SENDER}\n"
    assert (tmp_path / "sender.log.1").read_text("utf-8") == f"{SENDER}\n" * 10
    assert tail.texts() == [SENDER]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sender.log", "sender.log.1"]


def test_a_log_is_left_alone_while_it_is_small_and_young(tmp_path: Path) -> None:
    log = tmp_path / "sender.log"
    log.write_text(f"{SENDER}\n", "utf-8")
    moment = parse(SENDER, part="sender", before=0).time

    keep_bounded(tmp_path, now=lambda: moment + OLDEST_SECONDS - 1)
    assert log.stat().st_size < LARGEST_LOG
    assert not (tmp_path / "sender.log.1").exists()

    keep_bounded(tmp_path, now=lambda: moment + OLDEST_SECONDS + 1)
    assert log.stat().st_size == 0


def test_a_rotated_log_does_not_stay_for_ever(tmp_path: Path) -> None:
    (tmp_path / "sender.log").touch()
    older = tmp_path / "sender.log.1"
    older.touch()
    os.utime(older, times=(0, time.time() - OLDEST_SECONDS - 60))

    keep_bounded(tmp_path)

    assert not older.exists()
