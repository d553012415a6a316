"""The mail catcher as its users meet it: mails in by SMTP, Mailpit's answers out."""

import asyncio
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiohttp
import aiosmtplib
import pytest
from yarl import URL

from tools.mailcatcher.app import PortTakenError, catching
from tools.mailcatcher.settings import Settings
from tools.mailcatcher.smtp import SIZE_LIMIT


class Client:
    """What a test says to a running catcher."""

    def __init__(self, settings: Settings, http: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.http = http

    async def send(self, *mails: EmailMessage | bytes, to: str = "ada@example.org") -> list[str]:
        """Send over one connection and return the ids the server answered."""
        ids = []
        async with self.smtp() as smtp:
            for mail in mails:
                raw = mail.as_bytes() if isinstance(mail, EmailMessage) else mail
                _, reply = await smtp.sendmail("no-reply@example.org", [to], raw)
                ids.append(reply.rpartition(" ")[2])
        return ids

    def smtp(self) -> aiosmtplib.SMTP:
        port = self.settings.mailcatcher_smtp_port
        return aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)

    async def talk(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection that has said EHLO."""
        port = self.settings.mailcatcher_smtp_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(b"EHLO test\r\n")
        while not (await reader.readline()).startswith(b"250 "):
            pass
        return reader, writer

    async def get(self, path: str) -> Any:
        async with self.http.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def text(self, path: str, *, status: int = 200) -> str:
        async with self.http.get(path) as response:
            assert response.status == status
            return await response.text()


def settings_in(folder: Path) -> Settings:
    ports = []
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    smtp_port, web_port = ports
    return Settings(
        mailcatcher_smtp_port=smtp_port, mailcatcher_web_port=web_port, mailcatcher_dir=folder
    )


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Client]:
    settings = settings_in(folder)
    base = f"http://127.0.0.1:{settings.mailcatcher_web_port}"
    async with catching(settings), aiohttp.ClientSession(base) as http:
        yield Client(settings, http)


@pytest.fixture
async def catcher(tmp_path: Path) -> AsyncIterator[Client]:
    async with running(tmp_path) as client:
        yield client


def a_mail(subject: str = "Hello", to: str = "Ada Lovelace <ada@example.org>") -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "UserStream <no-reply@example.org>"
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = "<one@example.org>"
    mail["Date"] = "Sat, 31 Jan 2026 10:30:00 +0100"
    mail.set_content("Schöne Grüße\n")
    mail.add_alternative("<p>Schöne <b>Grüße</b></p>\n", subtype="html")
    return mail


async def test_a_sent_mail_is_listed_with_mailpits_fields(catcher: Client) -> None:
    mail = a_mail("Schön, dass du da bist")
    mail.add_attachment(b"a,b\n", maintype="text", subtype="csv", filename="report.csv")

    (mail_id,) = await catcher.send(mail)

    answer = await catcher.get("/api/v1/messages")
    (listed,) = answer.pop("messages")
    assert answer == {
        "total": 1,
        "unread": 1,
        "count": 1,
        "messages_count": 1,
        "messages_unread": 1,
        "start": 0,
        "tags": [],
    }
    assert listed.pop("Created").endswith("Z")
    assert listed.pop("Size") > len(mail.as_bytes())
    assert listed == {
        "ID": mail_id,
        "MessageID": "one@example.org",
        "Read": False,
        "From": {"Name": "UserStream", "Address": "no-reply@example.org"},
        "To": [{"Name": "Ada Lovelace", "Address": "ada@example.org"}],
        "Cc": [],
        "Bcc": [],
        "ReplyTo": [],
        "Subject": "Schön, dass du da bist",
        "Username": "",
        "Tags": [],
        "Attachments": 1,
        "Snippet": "Schöne Grüße",
    }


async def test_a_message_is_answered_decoded_and_counts_as_read(catcher: Client) -> None:
    mail = a_mail()
    mail["List-Unsubscribe"] = "<https://example.org/u>, <mailto:u@example.org>"
    mail.add_attachment(b"a,b\n", maintype="text", subtype="csv", filename="report.csv")
    (mail_id,) = await catcher.send(mail)

    message = await catcher.get(f"/api/v1/message/{mail_id}")

    assert message["Text"].strip() == "Schöne Grüße"
    assert "<b>Grüße</b>" in message["HTML"]
    assert message["Date"] == "2026-01-31T09:30:00.000Z"
    assert message["ReturnPath"] == "no-reply@example.org"
    assert message["ListUnsubscribe"]["Links"] == ["https://example.org/u", "mailto:u@example.org"]
    (attachment,) = message["Attachments"]
    assert (attachment["FileName"], attachment["Size"]) == ("report.csv", 4)
    part = f"/api/v1/message/{mail_id}/part/{attachment['PartID']}"
    assert await catcher.text(part) == "a,b\n"
    assert message == await catcher.get("/api/v1/message/latest")
    assert (await catcher.get("/api/v1/messages"))["unread"] == 0


async def test_raw_headers_and_views_answer_as_mailpits(catcher: Client) -> None:
    await catcher.send(a_mail())

    raw = await catcher.text("/api/v1/message/latest/raw")
    headers = await catcher.get("/api/v1/message/latest/headers")

    assert raw.startswith("Return-Path: <no-reply@example.org>\r\nFrom: UserStream")
    assert headers["Message-Id"] == ["<one@example.org>"]
    assert headers["Mime-Version"] == ["1.0"]
    assert (await catcher.text("/view/latest.txt")).strip() == "Schöne Grüße"
    assert "<b>Grüße</b>" in await catcher.text("/view/latest.html")
    assert await catcher.text("/readyz") == await catcher.text("/livez") == "ok"


async def test_lists_page_and_search_finds(catcher: Client) -> None:
    ids = await catcher.send(*(a_mail(f"Number {number}") for number in range(7)))
    await catcher.send(a_mail(to="grace@example.org"), to="grace@example.org")

    page = await catcher.get("/api/v1/messages?start=1&limit=3")
    found = await catcher.get("/api/v1/search?query=to:ada@example.org&start=5&limit=5")
    nonsense = await catcher.get("/api/v1/messages?start=-1&limit=" + "9" * 5000)

    assert [mail["ID"] for mail in page["messages"]] == ids[:3:-1]
    assert (page["total"], page["count"], page["start"]) == (8, 3, 1)
    assert [mail["ID"] for mail in found["messages"]] == ids[1::-1]
    assert (found["total"], found["messages_count"], found["count"]) == (8, 7, 2)
    assert nonsense["count"] == 8
    latest = await catcher.get("/api/v1/message/latest?query=to:ada@example.org")
    assert latest["ID"] == ids[-1]


async def test_the_same_message_id_twice_is_two_messages(catcher: Client) -> None:
    await catcher.send(a_mail(), a_mail())

    found = await catcher.get("/api/v1/search?query=message-id:one@example.org")

    assert [mail["MessageID"] for mail in found["messages"]] == ["one@example.org"] * 2


async def test_what_only_the_envelope_says_is_kept(catcher: Client) -> None:
    await catcher.send(b"Subject: x\r\n\r\n.dot\r\n..\r\n", to="hidden@example.org")

    message = await catcher.get("/api/v1/message/latest")

    assert message["Bcc"] == [{"Name": "", "Address": "hidden@example.org"}]
    assert message["MessageID"].endswith("@mailcatcher")
    assert message["Text"] == ".dot\r\n..\r\n"


async def test_mails_outlive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        await first.send(a_mail("One"), a_mail("Two"))
        before = await first.get("/api/v1/messages")

    async with running(tmp_path) as second:
        assert await second.get("/api/v1/messages") == before
        await second.send(a_mail("Three"))
        subjects = [m["Subject"] for m in (await second.get("/api/v1/messages"))["messages"]]

    assert subjects == ["Three", "Two", "One"]


async def test_deleting_takes_the_named_the_found_or_all(catcher: Client) -> None:
    ids = await catcher.send(*(a_mail(f"Number {number}") for number in range(4)))

    async def delete(path: str, **options: Any) -> int:
        async with catcher.http.delete(path, **options) as response:
            assert (response.status, await response.text()) == (200, "ok")
        return int((await catcher.get("/api/v1/messages"))["total"])

    assert await delete("/api/v1/messages", json={"IDs": ids[:1]}) == 3
    assert await delete("/api/v1/search?query=subject:2") == 2
    assert await delete("/api/v1/messages") == 0
    assert list(catcher.settings.mailcatcher_dir.iterdir()) == []


async def test_a_foreign_page_can_not_delete(catcher: Client) -> None:
    await catcher.send(a_mail())

    for headers in ({"Origin": "https://evil.example"}, {"Host": "rebind.example"}):
        async with catcher.http.post("/delete", headers=headers) as response:
            assert response.status in (403, 421)
        async with catcher.http.delete("/api/v1/messages", headers=headers) as response:
            assert response.status in (403, 421)
    for path in ("/", "/api/v1/messages"):
        async with catcher.http.get(path, headers={"Host": "rebind.example"}) as response:
            assert response.status == 421
        async with catcher.http.get(path, headers={"Cookie": "a=" + "b" * 20_000}) as response:
            assert response.status == 200
    async with catcher.http.post("/delete", headers={"Sec-Fetch-Site": "cross-site"}) as response:
        assert response.status == 403

    assert (await catcher.get("/api/v1/messages"))["total"] == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/message/latest", 404),
        ("/api/v1/message/0123456789abcdef", 404),
        ("/api/v1/message/..%2f..%2fetc%2fpasswd/raw", 404),
        ("/api/v1/message/latest/part/1", 404),
        ("/api/v1/search", 400),
        ("/api/v1/search?query=%20", 400),
        ("/view/unknown", 404),
        ("/view/unknown.html", 404),
        ("/static/../settings.py", 404),
    ],
)
async def test_what_is_not_there_is_no_server_error(
    catcher: Client, path: str, status: int
) -> None:
    await catcher.text(path, status=status)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"no headers, just text\r\n",
        b"\x00\xff\xfe\r\n\r\n\x00\xff",
        b"Subject: =?utf-8?b?!!!?= =?x?q?=FF?=\r\n\r\n",
        b"From: <<>>,;:\r\nTo: \xff\xfe <\xff@\xff>\r\nReply-To: (((\r\n\r\n",
        b"Date: Sat, 99 Foo 99999 99:99:99 +9999\r\nMessage-ID: <\xff>\r\n\r\nx",
        b"Content-Type: text/html; charset=klingon\r\n\r\n<p>\xff",
        b"Content-Type: text/html; charset=utf-7\r\n\r\n+2AA-",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n--x\r\n",
        b"Content-Type: image/png\r\n\r\n\x89PNG",
        b"Content-Type: image/png\r\n evil\r\n\r\nx",
        b'Content-Disposition: attachment; filename="\xff\r\n\x00.png"\r\n\r\nx',
        b"List-Unsubscribe: <javascript:alert(1)>\r\n\r\n",
        b"To: " + b"someone@example.org, " * 20_000 + b"\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--a\r\n\r\n" * 5000,
        b"x" * 300_000,
    ],
)
async def test_a_broken_mail_is_kept_and_every_view_of_it_answers(
    catcher: Client, raw: bytes
) -> None:
    reader, writer = await catcher.talk()
    writer.write(b"MAIL FROM:<>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n")
    writer.write(raw.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\nQUIT\r\n")
    replies = (await reader.read()).split(b"\r\n")
    writer.close()
    assert [reply[:3] for reply in replies] == [b"250", b"250", b"354", b"250", b"221", b""]

    views = ["?tab=html", "?tab=text", "?tab=source", "?tab=headers", ".txt"]
    for view in views:
        await catcher.text(f"/view/latest{view}")
    for path in ("/", "/?query=x", "/api/v1/message/latest/raw"):
        async with catcher.http.get(path) as response:
            assert response.status == 200
    message = await catcher.get("/api/v1/message/latest")
    await catcher.get("/api/v1/messages")
    await catcher.get("/api/v1/message/latest/headers")
    await catcher.get("/api/v1/search?query=-nothing%20to:-x")
    for part in message["Attachments"] + message["Inline"]:
        path = f"/api/v1/message/latest/part/{part['PartID']}"
        async with catcher.http.get(path) as response:
            assert response.status == 200


async def test_names_and_subjects_are_escaped_in_the_list(catcher: Client) -> None:
    attack = "<script>alert(1)</script>"
    await catcher.send(a_mail(attack, to=f'"{attack}" <ada@example.org>'))

    page = await catcher.text("/")

    assert attack not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


async def test_the_html_of_a_mail_may_run_and_load_nothing(catcher: Client) -> None:
    await catcher.send(a_mail())

    async with catcher.http.get("/view/latest.html") as mail, catcher.http.get("/") as page:
        policy = mail.headers["Content-Security-Policy"]
        assert policy.startswith("sandbox ")
        assert "allow-scripts" not in policy
        assert "allow-same-origin" not in policy
        assert "default-src 'none'" in policy
        assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")


async def test_pictures_in_a_mail_point_at_its_parts(catcher: Client) -> None:
    mail = EmailMessage()
    mail.set_content("<img src='cid:logo@example.org'>", subtype="html")
    mail.add_related(b"PNG", maintype="image", subtype="png", cid="<logo@example.org>")
    await catcher.send(mail)

    (picture,) = (await catcher.get("/api/v1/message/latest"))["Inline"]
    html = await catcher.text("/view/latest.html")

    address = html.partition("src='")[2].partition("'")[0]
    assert address.endswith(f"/part/{picture['PartID']}")
    async with catcher.http.get(address) as response:
        assert (response.content_type, await response.read()) == ("image/png", b"PNG")


async def test_the_extensions_are_announced(catcher: Client) -> None:
    async with catcher.smtp() as smtp:
        await smtp.ehlo()

        assert smtp.esmtp_extensions["size"] == str(SIZE_LIMIT)
        for extension in ("pipelining", "8bitmime", "smtputf8"):
            assert smtp.supports_extension(extension)


async def test_addresses_outside_ascii_are_taken(catcher: Client) -> None:
    mail = a_mail(to="józsef@példa.example")

    async with catcher.smtp() as smtp:
        await smtp.send_message(mail)

    found = await catcher.get("/api/v1/search?query=to:józsef@példa.example")
    assert found["count"] == 1


async def test_pipelined_mails_are_answered_in_order_wherever_packets_end(catcher: Client) -> None:
    envelope = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n"
    text = b"Subject: x\r\n\r\nA sentence.\r\n..\r\n"
    # A client may not send the text before it saw 354; one that does shows the worst case.
    session = (envelope + text + b".\r\n") * 3 + b"NOOP\r\nQUIT\r\n"
    for size in (1, 7, len(session)):
        reader, writer = await catcher.talk()
        for start in range(0, len(session), size):
            writer.write(session[start : start + size])
            await writer.drain()
            if size > 1:
                await asyncio.sleep(0)
        replies = (await reader.read()).split(b"\r\n")
        writer.close()
        codes = [reply[:3] for reply in replies]
        assert codes == [b"250", b"250", b"354", b"250"] * 3 + [b"250", b"221", b""]

    answer = await catcher.get("/api/v1/search?query=subject:x")
    assert answer["messages_count"] == 9
    assert (await catcher.get("/api/v1/message/latest"))["Text"] == "A sentence.\r\n.\r\n"


async def test_a_mail_over_the_limit_is_refused_and_the_connection_goes_on(
    catcher: Client,
) -> None:
    large = b"Subject: large\r\n\r\n" + (b"x" * 998 + b"\r\n") * (SIZE_LIMIT // 1000 + 1)
    reader, writer = await catcher.talk()

    writer.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n")
    writer.write(large + b".\r\n")
    await writer.drain()
    replies = [await reader.readline() for _ in range(4)]
    writer.write(b"MAIL FROM:<a@example.org> SIZE=99999999\r\nQUIT\r\n")
    rest = await reader.read()
    writer.close()

    assert [reply[:3] for reply in replies] == [b"250", b"250", b"354", b"552"]
    assert rest.startswith(b"552")
    assert (await catcher.get("/api/v1/messages"))["total"] == 0


async def test_a_lost_connection_leaves_nothing(catcher: Client) -> None:
    _, writer = await catcher.talk()
    writer.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\nSubject: x")
    await writer.drain()
    writer.transport.abort()

    await catcher.send(a_mail())

    assert (await catcher.get("/api/v1/messages"))["total"] == 1


async def test_a_mail_that_can_not_be_written_is_to_be_sent_again(
    catcher: Client, caplog: pytest.LogCaptureFixture
) -> None:
    catcher.settings.mailcatcher_dir.rmdir()

    with pytest.raises(aiosmtplib.SMTPDataError) as refused:
        await catcher.send(a_mail())

    assert refused.value.code == 452
    assert "ada@example.org" not in caplog.text
    assert (await catcher.get("/api/v1/messages"))["total"] == 0


async def test_an_open_page_hears_of_every_mail(catcher: Client) -> None:
    async with catcher.http.get("/events") as events:
        assert events.content_type == "text/event-stream"
        assert await next_count(events) == 0

        await catcher.send(a_mail())

        assert await next_count(events) == 1


async def next_count(events: aiohttp.ClientResponse) -> int:
    async with asyncio.timeout(20):
        async for line in events.content:
            if line.startswith(b"data: "):
                return int(line[6:])
    raise AssertionError("the stream ended")


async def test_a_taken_port_is_named_with_its_setting(catcher: Client, tmp_path: Path) -> None:
    free = settings_in(tmp_path)
    taken = catcher.settings.mailcatcher_web_port

    with pytest.raises(PortTakenError, match=f"{taken}.*MAILCATCHER_WEB_PORT"):
        async with catching(free.model_copy(update={"mailcatcher_web_port": taken})):
            pass


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Settings]]:
    settings = settings_in(tmp_path / "mails")
    process = start(settings)
    try:
        assert process.stderr
        assert "ready" in process.stderr.readline()
        yield process, settings
    finally:
        process.kill()
        process.communicate()


def start(settings: Settings) -> "subprocess.Popen[str]":
    given = {key.upper(): str(value) for key, value in settings.model_dump().items()}
    return subprocess.Popen(
        [sys.executable, "-m", "tools.mailcatcher"],
        env={**os.environ, **given},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_ends_the_program_cleanly_and_the_log_names_nobody(
    program: tuple["subprocess.Popen[str]", Settings],
) -> None:
    process, settings = program
    with smtplib.SMTP("127.0.0.1", settings.mailcatcher_smtp_port) as smtp:
        smtp.send_message(a_mail())

        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)

    assert process.returncode == 0
    assert log.count("\n") == 2, log
    assert " kept, " in log
    assert "@" not in log


def test_a_program_that_can_not_start_says_so_in_one_line(
    program: tuple["subprocess.Popen[str]", Settings],
) -> None:
    _, settings = program

    second = start(settings)
    _, log = second.communicate(timeout=30)

    assert second.returncode == 1
    assert log.count("\n") == 1
    assert f"port {settings.mailcatcher_smtp_port} is in use" in log


def test_nonsense_in_the_settings_is_named(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tools.mailcatcher"],
        env={**os.environ, "MAILCATCHER_KEEP": "many", "MAILCATCHER_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )

    assert process.returncode == 1
    assert process.stderr == "mailcatcher: not started: no valid value in MAILCATCHER_KEEP\n"


async def test_ids_nobody_has_delete_nothing(catcher: Client) -> None:
    (mail_id,) = await catcher.send(a_mail())

    async with catcher.http.delete(
        "/api/v1/messages", data=json.dumps({"IDs": ["unknown", 3]})
    ) as response:
        assert response.status == 200

    assert (await catcher.get("/api/v1/messages"))["messages"][0]["ID"] == mail_id


async def test_open_pages_leave_room_for_others(
    catcher: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.mailcatcher.pages.connection_limit", lambda: 10)
    streams = [await catcher.http.get("/events") for _ in range(6)]

    assert [stream.status for stream in streams] == [200] * 5 + [503]
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("name", ["%00", "x" * 300, "..%2fapp.py", "nothing.js", "%ff"])
async def test_what_is_no_file_of_the_page_is_not_found(catcher: Client, name: str) -> None:
    async with catcher.http.get(URL(f"/static/{name}", encoded=True)) as response:
        assert response.status == 404
    async with catcher.http.get("/static/live.js") as response:
        assert response.status == 200


@pytest.mark.parametrize("header", ["Accept", "Cookie", "Expect", "If-None-Match", "Range"])
async def test_a_header_that_is_not_ascii_is_no_fault_of_the_catcher(
    catcher: Client, header: str
) -> None:
    for path in ("/", "/static/style.css", "/view/latest"):
        async with catcher.http.get(path, headers={header: "\N{SNOWMAN}"}) as response:
            assert response.status < 500
