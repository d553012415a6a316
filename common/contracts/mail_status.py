"""What a refusal of a mail server is about: one table for replies and for later reports.

The enhanced status code decides (RFC 3463, RFC 5248, and the registry of IANA): class, subject,
detail. The text decides only where the code says nothing (``5.0.0``, or no code at all), and where
it plainly contradicts: ``550 5.1.1 Relay access denied`` is not about the recipient.
"""

import re
from enum import StrEnum
from functools import lru_cache

TEXT_LENGTH = 500
"""Characters of a text that are read."""


class Refusal(StrEnum):
    """What kept a mail from being taken or delivered."""

    NO_SUCH_ADDRESS = "no_such_address"
    """The recipient's address does not exist, or not any more."""

    NO_SUCH_DOMAIN = "no_such_domain"
    """The recipient's domain does not exist, or takes no mail."""

    UNSUPPORTED_ADDRESS = "unsupported_address"
    """The address has characters that a server on the way cannot take (RFC 6531)."""

    MAILBOX_FULL = "mailbox_full"
    """The mailbox exists and has no space."""

    MESSAGE = "message"
    """The mail itself: its size or its content."""

    POLICY = "policy"
    """The sender: not allowed to relay, not logged in, blocked, over its quota, not believed."""

    TEMPORARY = "temporary"
    """Network, routing or the server's own trouble; it may pass."""

    UNKNOWN = "unknown"
    """Neither code nor text says."""

    @property
    def concerns_recipient(self) -> bool:
        """Whether another recipient would not meet it."""
        return self in _DEAD or self in (Refusal.UNSUPPORTED_ADDRESS, Refusal.MAILBOX_FULL)


_DEAD = (Refusal.NO_SUCH_ADDRESS, Refusal.NO_SUCH_DOMAIN)

_BY_DETAIL = {
    (1, 0): Refusal.NO_SUCH_ADDRESS,
    (1, 1): Refusal.NO_SUCH_ADDRESS,
    (1, 2): Refusal.NO_SUCH_DOMAIN,
    (1, 3): Refusal.NO_SUCH_ADDRESS,  # its syntax
    (1, 4): Refusal.NO_SUCH_ADDRESS,  # ambiguous
    (1, 6): Refusal.NO_SUCH_ADDRESS,  # moved, no forwarding
    (1, 10): Refusal.NO_SUCH_ADDRESS,  # a null MX (RFC 7505); of Exchange: not found
    (2, 1): Refusal.NO_SUCH_ADDRESS,  # disabled
    (2, 2): Refusal.MAILBOX_FULL,
    (2, 3): Refusal.MESSAGE,  # too long for this mailbox
    (3, 3): Refusal.MESSAGE,  # the system is not capable of what the mail needs
    (3, 4): Refusal.MESSAGE,  # too big
    (3, 5): Refusal.POLICY,  # misconfigured
    (4, 5): Refusal.POLICY,  # congestion; of Gmail: the sender's daily quota
    (4, 310): Refusal.NO_SUCH_DOMAIN,  # of Exchange
    (6, 7): Refusal.UNSUPPORTED_ADDRESS,
    (6, 9): Refusal.UNSUPPORTED_ADDRESS,
    (6, 10): Refusal.UNSUPPORTED_ADDRESS,
    (7, 17): Refusal.NO_SUCH_ADDRESS,  # the mailbox has another owner (RFC 7293)
    (7, 18): Refusal.NO_SUCH_DOMAIN,  # the domain has
}
"""Subject and detail of a 5.y.z."""

_BY_SUBJECT = {
    1: Refusal.POLICY,  # what is left: the sender's address (5.1.7, 5.1.8), not conforming (5.1.9)
    2: Refusal.TEMPORARY,
    3: Refusal.TEMPORARY,
    4: Refusal.TEMPORARY,
    5: Refusal.UNKNOWN,  # protocol; used for anything
    6: Refusal.MESSAGE,
    7: Refusal.POLICY,
}

_VAGUE = {(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 4), (7, 0)}
"""Where the text may know better; as for the whole subject 5. (4, 4) is what Postfix says of an
unknown domain."""

PROTOCOL = 5
"""The subject that is used for anything, too."""

_NOT_IN_DIRECTORY = "access denied"
"""With 5.4.1, Exchange Online means a recipient whom the directory of the domain does not know."""

_ADDRESS = re.compile(r"<?[^\s<>]+@[^\s<>]+")

_FULL = re.compile(
    r"over ?quota|quota (?:is |has been |was )?(?:exceeded|full|reached)|exceed\w* .{0,40}quota"
    r"|(?:mailbox|inbox|maildir|mail box).{0,40}(?:full|too large|over its|limit|size exceeded)"
    r"|insufficient (?:system |disk )?storage|out of storage|(?:not enough|no) (?:storage )?space"
)
_SENDING_QUOTA = re.compile(r"sending|daily|hourly|outgoing|relay|sent too many|message rate")
_OURS = re.compile(
    r"relay\w* (?:access )?(?:is )?(?:denied|not |prohibited|disallowed|refused)"
    r"|(?:unable|cannot|can't|not permitted|not allowed|refuse\w*|do not|don't|won't|no)"
    r" (?:to )?relay"
    r"|authentication (?:is )?(?:required|needed)|must (?:first )?(?:authenticate|log ?in)"
    r"|not authenticated|authenticate first|unauthenticated|issue a starttls"
    r"|sender (?:address |domain |verif\w+ |callout |e?-?mail )*"
    r"(?:rejected|denied|refused|unknown|invalid|not |blocked|fail\w*|must|does not)"
    r"|block(?:ed)? ?list|black ?list|dnsbl|\brbl\b|spamhaus|spamcop|barracuda"
    r"|blocked (?:using|by|for|due|because|from)|(?:is|been|are|was) blocked|reputation"
    r"|\bspf\b|\bdkim\b|\bdmarc\b|\bptr\b|reverse dns|\brdns\b|looks like spam|spam message"
)
_NO_DOMAIN = re.compile(
    r"(?:host|domain)(?: or domain)?(?: name)? (?:was |is )?"
    r"(?:not found|unknown|does not exist|lookup failed|nonexistent|invalid)"
    r"|(?:unknown|no such|nonexistent|non-existent|unrouteable|invalid|bad)"
    r" (?:mail )?(?:host|domain)"
    r"|nxdomain|no (?:valid )?mx|name or service not known|name service error|non-existent hosts"
    r"|(?:domain|host) (?:does not|doesn't) accept mail"
)
_NO_ADDRESS = re.compile(
    r"(?:user|recipient|mailbox|account|address|alias|member|customer|e-?mail|rcpt)\b.{0,60}?\b"
    r"(?:unknown|not (?:be )?found|(?:does ?n[o']t|doesn't|do not|did not|not) exist|no longer"
    r"|disabled|deactivated|inactive|suspended|discontinued|unavailable|invalid|not known"
    r"|not listed|not (?:a )?valid|not active|not here|undeliverable|does ?n[o']t have|deleted)"
    r"|(?:unknown|invalid|no such|nonexistent|non-existent|bad|illegal|undeliverable|unrouteable"
    r"|inactive|disabled|no) (?:local |virtual |destination )?"
    r"(?:user|recipient|mailbox|account|address|e-?mail|alias|person|rcpt|customer)"
    r"|recipientnotfound|nosuchuser|not our customer|no mailbox here"
    r"|(?:isn't|is not) (?:a )?(?:known|valid|registered)|has left|#5\.1\.0 address rejected"
)
_MESSAGE = re.compile(
    r"(?:message|mail|size|content|attachment).{0,40}(?:too (?:big|large|long)|exceed\w*)"
    r"|exceed\w* .{0,40}(?:size|length)|too (?:big|large) (?:a )?(?:message|mail)"
)
_TEMPORARY = re.compile(
    r"tim(?:ed|e) ?-?out|expired|connection (?:refused|lost|reset|dropped|timed)|unreachable"
    r"|try (?:it )?(?:again )?later|temporar|retry time|too long in (?:the )?queue"
    r"|unable to connect|no route|in the queue|hop count|too many hops|mail loop|loops back"
)
_POLICY = re.compile(
    r"relay|spam|block|polic(?:y|ies)|denied|prohibited|banned|forbidden|abus|virus|malware"
    r"|not (?:allowed|authori[sz]ed|permitted|accepted|trusted)|authenticat|sender|quota|rate limit"
    r"|too many|refused"
)
_BUSY = re.compile(r"receiving mail (?:at a rate|too quickly)|rate that prevents")

_STATUS = re.compile(r"(?<![0-9.])([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![0-9.])")
_CODE = re.compile(r"(?<![0-9.#])([245][0-9]{2})(?=[ #-]|$)")


@lru_cache(256)
def refusal_of(code: int, status: str, text: str) -> Refusal:
    """What a refusal is about.

    Args:
        code: Of the reply (RFC 5321, 4.2), 0 where there is none.
        status: Enhanced status code such as ``5.1.1``, empty where there is none.
        text: The server's words.
    """
    words = _ADDRESS.sub(" ", text[:TEXT_LENGTH].lower())  # which may hold any of these words
    found = _STATUS.search(status) or _STATUS.search(words)
    kind, subject, detail = map(int, found.groups()) if found else (0, 0, 0)
    about = (subject, detail)
    if _FULL.search(words) and not _SENDING_QUOTA.search(words) and subject in (0, 1, 2, 3, 5):
        return Refusal.MAILBOX_FULL
    if 400 <= code < 500 or kind == 4:  # noqa: PLR2004 - 4yz, 4.y.z
        return Refusal.MAILBOX_FULL if about == (2, 2) else Refusal.TEMPORARY
    if _OURS.search(words) and about not in ((6, 7), (2, 2)):
        return Refusal.POLICY
    return _by_code(about, words)


def refusal_in_report(status: str, diagnostic: str) -> Refusal:
    """What a delivery status notification (RFC 3464) says was in the way.

    ``Status`` counts, and the diagnostic where that says nothing (``5.0.0``). Where ``Status`` says
    that the address is dead, the diagnostic must not say otherwise: it is the word of the server
    that refused, and some servers make 5.1.1 of any 550.
    """
    words = diagnostic[:TEXT_LENGTH]
    inner = _STATUS.search(words)
    code = _CODE.search(words)
    said = refusal_of(0, status, words)
    if not status or status.endswith(".0.0"):
        return refusal_of(int(code[1]) if code else 0, inner[0] if inner else "", words)
    if said in _DEAD and inner and not inner[0].endswith(".0.0"):
        return refusal_of(0, inner[0], words)
    return said


def _by_code(about: tuple[int, int], words: str) -> Refusal:
    known = _BY_DETAIL.get(about) or _BY_SUBJECT.get(about[0], Refusal.UNKNOWN)
    if about == (4, 1) and _NOT_IN_DIRECTORY in words:
        return Refusal.NO_SUCH_ADDRESS
    if about in _VAGUE or about[0] == PROTOCOL:
        said = _by_text(words)
        return known if said is Refusal.UNKNOWN else said
    return Refusal.TEMPORARY if _BUSY.search(words) else known


def _by_text(words: str) -> Refusal:
    for pattern, refusal in (
        (_NO_DOMAIN, Refusal.NO_SUCH_DOMAIN),
        (_NO_ADDRESS, Refusal.NO_SUCH_ADDRESS),
        (_MESSAGE, Refusal.MESSAGE),
        (_TEMPORARY, Refusal.TEMPORARY),
        (_POLICY, Refusal.POLICY),
    ):
        if pattern.search(words):
            return refusal
    return Refusal.UNKNOWN
