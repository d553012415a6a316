import itertools

import pytest

from tools.launcher.given import BELONGING, drop_unused, is_given
from tools.launcher.stack import listening_ports

FULL = {
    "QUEUE_URL": "amqp://user:pw@broker/",
    "DB_HOST": "db.example.org",
    "SMTP_HOST": "smtp.example.org",
}
LISTENERS = {"QUEUE_URL": "rabbitmq amqp", "DB_HOST": "postgres", "SMTP_HOST": "mailbox smtp"}


@pytest.mark.parametrize("how", ["{}", "{}_FILE"])
@pytest.mark.parametrize(
    "named", [some for n in range(4) for some in itertools.combinations(FULL, n)], ids=str
)
def test_each_real_part_stands_for_itself_and_no_other(named: tuple[str, ...], how: str) -> None:
    given = {how.format(name): FULL[name] for name in named}

    listening = listening_ports(given, 0)

    for name, listener in LISTENERS.items():
        assert is_given(given, name) is (name in named)
        assert (listener in listening) is (name not in named)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("how", ["{}", "{}_FILE"])
def test_an_empty_variable_names_nothing(name: str, how: str) -> None:
    given = {how.format(name): ""}

    assert not is_given(given, name)
    assert drop_unused(given, pytest.fail) == {}


@pytest.mark.parametrize(
    ("main", "other"), [(main, other) for main, others in BELONGING.items() for other in others]
)
@pytest.mark.parametrize("how", ["{}", "{}_FILE"])
def test_what_belongs_to_a_real_part_does_not_mislead_our_own(
    main: str, other: str, how: str
) -> None:
    said: list[str] = []
    given = {how.format(other): "x", "PREFETCH": "7"}

    assert drop_unused(given, said.append) == {"PREFETCH": "7"}
    assert how.format(other) in said[0]
    assert main in said[0]


@pytest.mark.parametrize("main", FULL)
def test_what_belongs_to_a_real_part_goes_with_it(main: str) -> None:
    given = {main: FULL[main], **dict.fromkeys(BELONGING[main], "x")}

    assert drop_unused(given, pytest.fail) == given
