from pathlib import Path

import pytest

from tools.bench import mails
from tools.bench.mails import Mails


def test_the_log_is_read_as_it_grows_and_only_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "mails.log"
    log.write_text("1.5 ada@example.org\n2.0 zoë@exam")
    read = Mails(log)

    assert read.read() == ["ada@example.org"]

    with log.open("a") as file:
        file.write("ple.org\n3.0 ada@example.org\n")

    assert read.read() == ["zoë@example.org"]
    assert read.first == {"ada@example.org": 1.5, "zoë@example.org": 2.0}
    assert read.repeated == ["ada@example.org"]


async def test_what_does_not_come_is_given_up_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "PATIENCE_SECONDS", 0.05)
    log = tmp_path / "mails.log"
    log.write_text("1.0 ada@example.org\n")

    missing = await Mails(log).wait_for(["ada@example.org", "grace@example.org"])

    assert missing == 1
