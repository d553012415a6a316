"""The SMTP client against servers that do anything a server can do."""

import asyncio
import ssl
from typing import Literal

import pytest

from sender.smtp import transport as link
from sender.smtp.connection import Connection, Mail
from sender.smtp.errors import LinkDroppedError, NotConnectedError, Utf8AddressError
from sender.smtp.handshake import Security, Server
from sender.smtp.replies import Phase
from tests.certificates import certificate
from tests.polling import until
from tools.testing.smtp_server import (
    DROP,
    STALL,
    Action,
    Hold,
    Point,
    SmtpServer,
    running_smtp_server,
)

TRUSTING = ssl.create_default_context()


def a_server(
    server: SmtpServer,
    *,
    security: Security = Security.NONE,
    tls: ssl.SSLContext = TRUSTING,
    user: str = "",
    password: str = "",
) -> Server:
    return Server(
        host=server.host,
        port=server.port,
        security=security,
        tls=tls,
        user=user,
        password=password,
    )


def a_mail(
    to: str = "ada@example.org", content: bytes = b"Subject: hello\r\n\r\nhello\r\n"
) -> Mail:
    return Mail(sender="us@example.com", recipient=to, content=content)


def go_on() -> None:
    """Nothing speaks against sending the text."""


@pytest.fixture(autouse=True)
def short_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 0.3))


async def send_one(server: SmtpServer, mail: Mail | None = None) -> str:
    connection = await Connection.open(a_server(server))
    answer = await connection.send(mail or a_mail(), before_text=go_on)
    await connection.quit()
    return f"{answer.phase.value}: {answer.reply}"


async def test_a_mail_arrives_with_two_packets_where_the_server_pipelines() -> None:
    async with running_smtp_server() as server:
        answer = await send_one(server)

    assert answer == "text: 250 2.0.0 queued"
    assert server.mails[0].content == b"Subject: hello\r\n\r\nhello\r\n"
    assert b"MAIL FROM:<us@example.com>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n" in server.packets


async def test_commands_wait_for_replies_where_the_server_does_not_pipeline() -> None:
    async with running_smtp_server(SmtpServer(extensions=[])) as server:
        answer = await send_one(server)

    assert answer == "text: 250 2.0.0 queued"
    assert b"MAIL FROM:<us@example.com>\r\n" in server.packets


async def test_lines_with_a_dot_arrive_as_they_were_written() -> None:
    content = b".first: 1\r\n\r\n.\r\n..\r\n.x\r\nend.\r\n"
    async with running_smtp_server() as server:
        await send_one(server, a_mail(content=content))

    assert [mail.content for mail in server.mails] == [content]


async def test_many_mails_travel_on_one_connection_after_any_refusal() -> None:
    async with running_smtp_server() as server:
        server.on("RCPT", "550 no", to="nobody@example.org")
        server.on("TEXT", "451 later", to="later@example.org")
        connection = await Connection.open(a_server(server))
        answers = [
            await connection.send(a_mail(f"{name}@example.org"), before_text=go_on)
            for name in ("nobody", "ada", "later", "bob")
        ]
        await connection.quit()

    assert [answer.reply.code for answer in answers] == [550, 250, 451, 250]
    assert [answer.phase for answer in answers][:1] == [Phase.RCPT]
    assert server.sessions == 1


async def test_a_text_asked_for_in_spite_of_a_refusal_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(link.SECONDS, Phase.IDLE, 3600.0)
    async with running_smtp_server() as server:
        server.on("MAIL", "550 not you")  # and RCPT and DATA are answered as if it had not been
        connection = await Connection.open(a_server(server))
        async with asyncio.timeout(30):
            answer = await connection.send(a_mail(), before_text=pytest.fail)

    assert (answer.phase, answer.reply.code) == (Phase.MAIL, 550)
    assert not connection.usable
    assert server.mails == []


async def test_a_mail_is_not_sent_where_the_last_moment_forbids_it() -> None:
    def forbid() -> None:
        raise InterruptedError

    async with running_smtp_server() as server:
        connection = await Connection.open(a_server(server))
        with pytest.raises(InterruptedError):
            await connection.send(a_mail(), before_text=forbid)

    assert not connection.usable
    assert server.mails == []


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("action", [DROP, STALL, b"nonsense\r\n", b"250", b"999 what\r\n", b"\r\n"])
@pytest.mark.parametrize(
    ("point", "phase"),
    [
        ("MAIL", Phase.MAIL),
        ("RCPT", Phase.RCPT),
        ("DATA", Phase.DATA),
        ("TEXT", Phase.TEXT),
    ],
)
async def test_a_link_that_ends_names_the_phase(
    point: Point, phase: Phase, action: Action, *, pipelining: bool
) -> None:
    extensions = ["PIPELINING"] if pipelining else []
    async with running_smtp_server(SmtpServer(extensions=extensions)) as server:
        server.on(point, action)
        connection = await Connection.open(a_server(server))
        with pytest.raises(LinkDroppedError) as caught:
            await connection.send(a_mail(), before_text=go_on)

    assert caught.value.phase is phase
    assert not connection.usable


async def test_a_refusal_counts_even_if_the_server_hangs_up_after_it() -> None:
    async with running_smtp_server() as server:
        server.on("RCPT", "550 no")
        server.on("DATA", DROP)
        connection = await Connection.open(a_server(server))
        answer = await connection.send(a_mail(), before_text=go_on)

    assert answer.reply.code == 550
    assert not connection.usable


@pytest.mark.parametrize("point", ["MAIL", "RCPT", "DATA", "TEXT"])
async def test_after_a_421_the_connection_is_not_used_again(point: Point) -> None:
    async with running_smtp_server() as server:
        server.on(point, "421 closing")
        connection = await Connection.open(a_server(server))
        answer = await connection.send(a_mail(), before_text=go_on)

        assert answer.reply.code == 421
        assert not connection.usable


async def test_a_reply_that_means_nothing_after_the_text_leaves_the_mail_unsure() -> None:
    async with running_smtp_server() as server:
        server.on("TEXT", "354 more")
        connection = await Connection.open(a_server(server))
        with pytest.raises(LinkDroppedError) as caught:
            await connection.send(a_mail(), before_text=go_on)

    assert caught.value.phase is Phase.TEXT


async def test_a_farewell_in_a_pause_is_noticed_before_the_next_mail() -> None:
    async with running_smtp_server() as server:
        connection = await Connection.open(a_server(server))
        server.hang_up()
        await until(lambda: not connection.usable)


async def test_words_that_nobody_asked_for_are_no_answer_to_the_next_mail() -> None:
    async with running_smtp_server() as server:
        connection = await Connection.open(a_server(server))
        server.say("421 4.4.2 idle for too long")
        await until(lambda: not connection.usable)
        connection.abort()


async def test_an_address_with_letters_of_any_script_is_said_with_smtputf8() -> None:
    async with running_smtp_server() as server:
        await send_one(server, a_mail("jörg@example.org"))

    assert server.mails[0].recipients == ["jörg@example.org"]
    assert "MAIL FROM:<us@example.com> SMTPUTF8" in server.commands


async def test_such_an_address_is_refused_where_the_server_can_not_take_it() -> None:
    async with running_smtp_server(SmtpServer(extensions=["PIPELINING"])) as server:
        connection = await Connection.open(a_server(server))
        with pytest.raises(Utf8AddressError):
            await connection.send(a_mail("jörg@example.org"), before_text=go_on)
        assert connection.usable
        await connection.quit()

    assert not any(command.startswith("MAIL") for command in server.commands)


@pytest.mark.parametrize(
    "address",
    [
        "a@example.org>\r\nRCPT TO:<b@example.org",
        "a b@example.org",
        "a\0@x.org",
        "a\ud800@x.org",
        "",
    ],
)
async def test_an_address_never_becomes_a_command(address: str) -> None:
    async with running_smtp_server() as server:
        connection = await Connection.open(a_server(server))
        with pytest.raises(ValueError, match="bracket"):
            await connection.send(a_mail(address), before_text=go_on)
        await connection.quit()

    assert not any(command.startswith(("MAIL", "RCPT")) for command in server.commands)


@pytest.mark.parametrize("point", ["CONNECT", "EHLO"])
@pytest.mark.parametrize(
    "action", [DROP, STALL, "554 go away", "421 busy", "451 later", b"\xff\xfe\0\r\n", b"220"]
)
async def test_without_greeting_and_hello_there_is_no_session(point: Point, action: Action) -> None:
    async with running_smtp_server() as server:
        server.on(point, action)
        with pytest.raises(NotConnectedError):
            await Connection.open(a_server(server))
        await until(lambda: server.open_sessions == 0)


async def test_nobody_listening_is_no_session() -> None:
    async with running_smtp_server() as server:
        pass
    with pytest.raises(NotConnectedError, match="no connection"):
        await Connection.open(a_server(server))


async def test_starttls_encrypts_everything_from_mail_on() -> None:
    own = certificate()
    async with running_smtp_server(SmtpServer(tls=own.for_server())) as server:
        connection = await Connection.open(
            a_server(server, security=Security.STARTTLS, tls=own.for_client())
        )
        await connection.send(a_mail(), before_text=go_on)
        await connection.quit()

    assert server.mails[0].encrypted
    assert [command.partition(" ")[0] for command in server.commands][:3] == [
        "EHLO",
        "STARTTLS",
        "EHLO",
    ]


async def test_what_is_offered_before_tls_is_forgotten_under_it() -> None:
    own = certificate()
    async with running_smtp_server(SmtpServer(tls=own.for_server(), extensions=[])) as server:
        server.on("EHLO", "250-test\r\n250-PIPELINING\r\n250 STARTTLS", times=1)
        connection = await Connection.open(
            a_server(server, security=Security.STARTTLS, tls=own.for_client())
        )
        await connection.send(a_mail(), before_text=go_on)
        await connection.quit()

    assert b"MAIL FROM:<us@example.com>\r\n" in server.packets


async def test_a_server_without_starttls_is_refused_where_it_is_required() -> None:
    async with running_smtp_server(SmtpServer(credentials={"us": "secret"})) as server:
        with pytest.raises(NotConnectedError, match="STARTTLS"):
            await Connection.open(
                a_server(server, security=Security.STARTTLS, user="us", password="secret")
            )

    assert [command.partition(" ")[0] for command in server.commands] == ["EHLO"]


async def test_words_slipped_in_before_tls_end_the_session() -> None:
    own = certificate()
    async with running_smtp_server(SmtpServer(tls=own.for_server())) as server:
        server.on("STARTTLS", b"220 go on\r\n250 forged\r\n")
        with pytest.raises(NotConnectedError, match="before the handshake"):
            await Connection.open(
                a_server(server, security=Security.STARTTLS, tls=own.for_client())
            )


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
@pytest.mark.parametrize("name", ["IP:127.0.0.2", "DNS:example.org"])
async def test_a_certificate_for_another_name_is_refused(security: Security, name: str) -> None:
    other = certificate(name)
    server = SmtpServer(tls=other.for_server())
    first_byte = server.tls if security is Security.TLS else None
    async with running_smtp_server(server, tls=first_byte):
        with pytest.raises(NotConnectedError, match="certificate"):
            await Connection.open(a_server(server, security=security, tls=other.for_client()))


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    async with running_smtp_server(SmtpServer(tls=certificate().for_server())) as server:
        with pytest.raises(NotConnectedError, match="certificate"):
            await Connection.open(a_server(server, security=Security.STARTTLS))


async def test_tls_from_the_first_byte() -> None:
    own = certificate()
    async with running_smtp_server(tls=own.for_server()) as server:
        connection = await Connection.open(
            a_server(server, security=Security.TLS, tls=own.for_client())
        )
        await connection.send(a_mail(), before_text=go_on)
        await connection.quit()

    assert server.mails[0].encrypted


@pytest.mark.parametrize("methods", ["PLAIN LOGIN", "LOGIN"])
async def test_the_login_opens_the_session(methods: str) -> None:
    server = SmtpServer(credentials={"us": "sécret"})
    if methods == "LOGIN":
        server.on("EHLO", "250-test\r\n250 AUTH LOGIN")
    async with running_smtp_server(server):
        connection = await Connection.open(a_server(server, user="us", password="sécret"))
        await connection.send(a_mail(), before_text=go_on)
        await connection.quit()

    assert server.mails[0].user == "us"


@pytest.mark.parametrize("reply", ["500 what", "502 5.5.1 no", "550 not to you", "554 no"])
async def test_a_server_that_knows_helo_only_takes_mails(reply: str) -> None:
    async with running_smtp_server() as server:
        server.on("EHLO", reply)
        server.on("HELO", "250 test")
        answer = await send_one(server)

    assert answer == "text: 250 2.0.0 queued"
    assert b"MAIL FROM:<us@example.com>\r\n" in server.packets  # it has offered nothing


async def test_helo_offers_no_tls_where_that_is_required() -> None:
    async with running_smtp_server() as server:
        server.on("EHLO", "502 5.5.1 no")
        server.on("HELO", "250 test")
        with pytest.raises(NotConnectedError, match="STARTTLS"):
            await Connection.open(a_server(server, security=Security.STARTTLS))


OFFERS = {
    "one line": "250-test\r\n250 AUTH PLAIN LOGIN",
    "two lines": "250-test\r\n250-AUTH GSSAPI NTLM\r\n250 AUTH LOGIN PLAIN",
    "for old clients, too": "250-test\r\n250-AUTH LOGIN PLAIN\r\n250 AUTH=LOGIN PLAIN",
    "for old clients first": "250-test\r\n250-AUTH=LOGIN PLAIN\r\n250-AUTH CRAM-MD5\r\n250 SIZE",
    "in lower case": "250-test\r\n250 auth plain login",
}


@pytest.mark.parametrize("plain", ["takes", "refuses", "asks"])
@pytest.mark.parametrize("offer", OFFERS)
async def test_a_server_is_logged_in_to_however_it_offers_and_takes_it(
    offer: str, plain: Literal["takes", "refuses", "asks"]
) -> None:
    server = SmtpServer(credentials={"us": "sécret"}, plain=plain)
    server.on("EHLO", OFFERS[offer])
    async with running_smtp_server(server):
        connection = await Connection.open(a_server(server, user="us", password="sécret"))
        await connection.send(a_mail(), before_text=go_on)
        await connection.quit()

    assert server.mails[0].user == "us"


@pytest.mark.parametrize("plain", ["refuses", "hangs up"])
async def test_a_method_that_was_refused_is_not_tried_first_again(
    plain: Literal["refuses", "hangs up"],
) -> None:
    server = SmtpServer(credentials={"us": "secret"}, plain=plain)
    async with running_smtp_server(server):
        target = a_server(server, user="us", password="secret")
        if plain == "hangs up":
            with pytest.raises(NotConnectedError, match=r"535 5\.7\.8"):
                await Connection.open(target)
        for _ in range(3):
            connection = await Connection.open(target)
            await connection.quit()

    assert sum(command.startswith("AUTH PLAIN") for command in server.commands) == 1


async def test_a_wrong_password_is_said_with_the_first_refusal() -> None:
    server = SmtpServer(credentials={"us": "secret"})
    server.on("AUTH", "535 5.7.8 first", times=1)
    async with running_smtp_server(server):
        with pytest.raises(NotConnectedError, match="first"):
            await Connection.open(a_server(server, user="us", password="wrong"))


@pytest.mark.parametrize("methods", ["PLAIN LOGIN", "LOGIN"])
async def test_a_refused_login_is_no_session(methods: str) -> None:
    server = SmtpServer(credentials={"us": "secret"})
    server.on("EHLO", f"250-test\r\n250 AUTH {methods}")
    async with running_smtp_server(server):
        with pytest.raises(NotConnectedError, match=r"535 5\.7\.8"):
            await Connection.open(a_server(server, user="us", password="wrong"))


async def test_a_server_without_password_login_is_refused_where_one_is_set() -> None:
    async with running_smtp_server() as server:
        with pytest.raises(NotConnectedError, match="SMTP_USER"):
            await Connection.open(a_server(server, user="us", password="secret"))


async def test_a_check_that_is_cancelled_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(link.SECONDS, Phase.IDLE, 3600.0)
    async with running_smtp_server() as server:
        server.on("NOOP", STALL)
        connection = await Connection.open(a_server(server))
        asking = asyncio.create_task(connection.check())
        await until(lambda: b"NOOP\r\n" in server.packets)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        assert not connection.usable  # its answer would be read as the next command's
        connection.abort()


async def test_a_text_that_can_not_leave_any_more_is_not_committed_to() -> None:
    async with running_smtp_server() as server:
        server.on("BODY", DROP, to="bob@example.org")
        connection = await Connection.open(a_server(server))
        ada, bob = a_mail(), a_mail("bob@example.org")
        await connection.send(ada, before_text=go_on, next_mail=lambda: bob)
        await until(lambda: server.open_sessions == 0)  # 354, and then the link was gone
        await until(lambda: connection._transport._protocol.ended)

        with pytest.raises(LinkDroppedError) as caught:
            await connection.send(bob, before_text=pytest.fail)

    assert caught.value.phase is Phase.DATA


async def test_a_connection_that_expects_one_mail_takes_no_other() -> None:
    async with running_smtp_server() as server:
        connection = await Connection.open(a_server(server))
        announced = a_mail("bob@example.org")
        held = Hold("250 ok")
        await connection.send(
            a_mail(),
            before_text=lambda: server.on("MAIL", held, times=1),
            next_mail=lambda: announced,
        )

        assert not connection.usable
        held.released.set()
        await connection.send(announced, before_text=go_on)
        assert connection.usable
        await connection.quit()

    assert len(server.accepted) == 2
