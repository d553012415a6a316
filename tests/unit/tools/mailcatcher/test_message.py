import time
from email.message import EmailMessage

import pytest

from tools.mailcatcher.message import read_content, squeeze, strip_html


def test_content_has_text_html_and_attachments_apart() -> None:
    mail = EmailMessage()
    mail.set_content("Schöne Grüße")
    mail.add_alternative("<p>Sch&ouml;ne <b>Grüße</b></p>", subtype="html")
    mail.add_attachment(b"a,b\n", maintype="text", subtype="csv", filename="bericht ä.csv")

    content = read_content(mail.as_bytes())

    assert content.text.strip() == "Schöne Grüße"
    assert "<b>Grüße</b>" in content.html
    (attachment,) = content.attachments
    assert (attachment.file_name, attachment.content) == ("bericht ä.csv", b"a,b\n")
    assert not attachment.inline
    assert content.snippet() == "Schöne Grüße"


def test_pictures_within_the_html_are_inline() -> None:
    mail = EmailMessage()
    mail.set_content("<img src='cid:logo@example.org'>", subtype="html")
    mail.add_related(b"PNG", maintype="image", subtype="png", cid="<logo@example.org>")

    (picture,) = read_content(mail.as_bytes()).attachments

    assert picture.inline
    assert picture.content_id == "logo@example.org"


def test_a_mail_of_html_alone_has_the_words_of_it_as_text() -> None:
    content = read_content(b"Content-Type: text/html\n\n<style>p{}</style><p>Hello<br>you</p>")

    assert content.text == "Hello you"


def test_snippet_is_cut_at_200_characters() -> None:
    snippet = read_content(b"\n" + b"x" * 500).snippet()

    assert snippet == "x" * 200 + "..."


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe",
        b"Content-Type: text/plain; charset=no-such-charset\n\n\xff caf\xc3\xa9",
        b'Content-Type: text/plain; charset="\xff"\n\nx',
        b"Content-Type: text/plain; charset*=utf-7'%FF'%FF\n\nx",
        b"Content-Type: multipart/mixed\n\nno boundary",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n--x\n--x--",
        b"Content-Transfer-Encoding: base64\n\n!!!!",
        b"Content-Transfer-Encoding: base64\nContent-Type: message/rfc822\n\nSGVsbG8=",
        b"Content-Disposition: attachment; filename*0*=utf-16''%D8; filename*1=x\n\nx",
        b"Content-Type: text/html\n\n<![if\n<!-- <p>",
        b"Content-Type: " + b"multipart/mixed; boundary=a\n\n--a\nContent-Type: " * 3000,
    ],
)
def test_broken_mails_are_shown_as_far_as_they_go(raw: bytes) -> None:
    content = read_content(raw)

    content.text.encode()
    content.html.encode()
    content.snippet().encode()
    [part.file_name.encode() for part in content.attachments]


def test_strip_html_leaves_out_scripts_styles_and_titles() -> None:
    html = "<head><title>no</title></head><p>One</p><script>no</script><p>two &amp; three"

    assert strip_html(html).split() == ["One", "two", "&", "three"]


@pytest.mark.parametrize(
    "part",
    ["<!--", "<a ", "<", "</a ", "</", "<!a", "<?", "<![CDATA[", "<head>", "<a href='", "&"],
)
def test_strip_html_takes_ten_times_as_long_for_ten_times_as_much(part: str) -> None:
    def once(count: int) -> float:
        begun = time.thread_time()
        strip_html(part * count)
        return time.thread_time() - begun

    def seconds(count: int) -> float:
        """The fastest of three: the garbage of other tests may be collected in one of them."""
        return min(once(count) for _ in range(3))

    # Squared, it would be a hundred times; a page of these stood still for minutes.
    assert seconds(100_000) < 40 * max(seconds(10_000), 0.005)


@pytest.mark.parametrize(
    "header",
    ["Content-Type: text/plain", "Content-Type: multipart/mixed", "Content-Disposition: inline"],
)
@pytest.mark.parametrize(
    ("begin", "part"),
    [('; a="', ";b"), ("", ";b=c"), ('; a="', ";\n "), ("; filename=", "=?utf-8?b?a?=\n ")],
)
def test_a_header_is_read_in_ten_times_the_time_for_ten_times_as_much(
    header: str, begin: str, part: str
) -> None:
    def seconds(count: int) -> float:
        mail = f"Subject: x\n{header}{begin}{part * count}\n\nhello".encode()
        begun = time.thread_time()
        read_content(mail)
        return time.thread_time() - begun

    assert seconds(40_000) < 40 * max(seconds(4_000), 0.005)


def test_a_mail_whose_headers_are_too_odd_to_be_read_is_shown_as_it_is() -> None:
    mail = b'Content-Type: text/plain; a="' + b";" * 1000 + b"\r\n\r\nhello"

    assert read_content(mail).text == "hello"


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("a<!-- b --><!-- c", "a"),
        ("<p>a</p><p>b", "a b"),
        ("1 < 2 &amp;&lt; 3", "1 < 2 &< 3"),
        ("<script>if (a<b) {}</script >c", "c"),
        ("<STYLE>x</style>a<br/>b", "a b"),
        ("<!doctype html><?xml?>a", "a"),
        ("a<b", "a"),
    ],
)
def test_strip_html_keeps_what_a_reader_sees(html: str, words: str) -> None:
    assert squeeze(strip_html(html)) == words


def test_parts_within_hundreds_of_parts_are_shown_as_they_came() -> None:
    nested = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (depth, depth)
        for depth in range(500)
    )

    content = read_content(nested + b"Content-Type: text/plain\r\n\r\nHello\r\n")

    assert content.text.endswith("Hello\r\n")
    assert content.attachments == ()
