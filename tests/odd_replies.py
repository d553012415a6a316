"""What mail servers should not say: replies as hypothesis makes them up."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st


@dataclass(frozen=True, slots=True)
class OddReply:
    """Bytes that come where one reply should."""

    parts: tuple[bytes, ...]
    """As they leave, one after the other."""

    code: int | None
    """Of the first reply in it; None if there is none that is whole and is one."""

    hangs_up: bool
    """Whether that is the last of the connection."""

    @property
    def content(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


PACKET_BYTES = 1_000
"""What surely arrives in one read."""

NEWLINE = st.sampled_from([b"\r\n", b"\n"])


def _without_newline(text: bytes) -> bytes:
    return text.replace(b"\n", b"")


WORDS = st.one_of(
    st.binary(max_size=40).map(_without_newline),
    st.sampled_from(
        [b"", b"2.0.0 ok", b"5.1.1 <ada@example.org> gone", b"x" * 10_000, b"\r", b"-"]
    ),
)

CODES = st.one_of(
    st.integers(200, 599),
    st.sampled_from([211, 214, 220, 221, 235, 250, 251, 252, 334, 354, 421, 450, 451, 452, 455]),
    st.sampled_from([500, 501, 502, 503, 504, 521, 530, 535, 550, 551, 552, 553, 554, 555, 599]),
)


@st.composite
def replies(draw: st.DrawFn, code: int | None = None) -> tuple[int, bytes]:
    """A reply that is one, over one line or several."""
    code = code or draw(CODES)
    lines = draw(st.lists(WORDS, min_size=1, max_size=4))
    middle = b"".join(b"%d-%b%b" % (code, line, draw(NEWLINE)) for line in lines[:-1])
    return code, middle + b"%d %b%b" % (code, lines[-1], draw(NEWLINE))


NONSENSE = (
    b"%d-one\r\n999 two\r\n",
    b"%d-one\r\nwhat\r\n",
    b"%dx\r\n",
    b"\n%d after an empty line\r\n",
    b" %d behind a space\r\n",
    b"\x00%d behind a NUL\r\n",
    b"\r\n",
    b"\xff\xfe\x80\r\n",
    b"999 what\r\n",
    b"000 what\r\n",
    b"199 what\r\n",
    b"600 what\r\n",
    b"25 what\r\n",
    b"2500 what\r\n",
    b"2 0 what\r\n",
    b"abc what\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"%d-more\r\n" + b"250-more\r\n" * 9_000,
    b"x" * 70_000,
)
"""Lines that are no reply; with a code that could begin one."""


@st.composite
def nonsense(draw: st.DrawFn) -> bytes:
    """A line or more that are no reply."""
    kind = NONSENSE[draw(st.integers(0, len(NONSENSE) - 1))]  # some are too long to show
    return kind % draw(st.integers(200, 599)) if b"%d" in kind else kind


def cut(draw: st.DrawFn, content: bytes) -> tuple[bytes, ...]:
    """The bytes, cut anywhere; short ones sometimes at every byte."""
    if len(content) <= 100 and draw(st.booleans()):
        return tuple(content[place : place + 1] for place in range(len(content)))
    places = sorted(draw(st.lists(st.integers(0, len(content)), max_size=4)))
    bounds = [0, *places, len(content)]
    return tuple(content[a:b] for a, b in pairwise(bounds))


@st.composite
def odd_replies(draw: st.DrawFn, usual: int | None = None) -> OddReply:
    """Something that comes instead of the usual reply; half of it begins with its code."""
    kind = draw(st.sampled_from(["reply", "two", "nonsense", "unfinished", "silence"]))
    code, reply = draw(replies(usual if draw(st.booleans()) else None))
    if kind == "reply":
        return OddReply(cut(draw, reply), code, draw(st.booleans()))
    if kind == "two":  # in one packet: of what comes later nobody can tell what it answers
        other, second = draw(replies(draw(st.sampled_from([None, 250, 354]))))
        both = reply + second
        if len(both) > PACKET_BYTES:
            both = b"%d\r\n%d\r\n" % (code, other)
        return OddReply((both,), code, draw(st.booleans()))
    if kind == "nonsense":
        return OddReply(cut(draw, draw(nonsense())), None, draw(st.booleans()))
    if kind == "unfinished":
        kept = draw(st.integers(1, len(reply) - 1))
        return OddReply(cut(draw, reply[:kept]), None, hangs_up=True)
    return OddReply((), None, hangs_up=True)
