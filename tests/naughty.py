"""Texts that break programs: what people, their keyboards and their enemies put into a field.

The classes are those of the "Big List of Naughty Strings"; the texts are made here, so that
every class comes in the variations that matter to a name or an address.
"""

# ruff: noqa: RUF001, E501
# Characters that look like others are what it is about.

import unicodedata
from collections.abc import Iterator

RESERVED = (
    "undefined", "undef", "null", "NULL", "(null)", "nil", "NIL", "true", "false", "True", "None",
    "hasOwnProperty", "then", "constructor", "__proto__", "__dict__", "toString", "\\", "\\\\",
    "NaN", "Infinity", "-Infinity", "INF", "COM1", "CON", "PRN", "LPT1", "AUX", "nul.txt",
)  # fmt: skip

NUMBERS = (
    "0", "1", "1.00", "$1.00", "1/2", "1E2", "1E+02", "-1", "-1.00", "-$1.00", "1/0", "0/0",
    "-2147483648/-1", "-9223372036854775808/-1", "-0", "-0.0", "+0", "0.00", "0..0", ".", "0.0.0",
    "0,00", "0,,0", ",", "--1", "-", "-.", "-,", "9" * 96, "0x0", "0xffffffff", "0xabad1dea",
    "123456789012345678901234567890123456789", "1,000.00", "1 000.00", "1'000.00", "1,000,000.00",
    "01000", "08", "09", "2.2250738585072011e-308", "1e309", "٠", "١٢٣", "൪", "²", "½", "Ⅷ",
)  # fmt: skip

PUNCTUATION = (
    ",./;'[]\\-=", '<>?:"{}|_+', "!@#$%^&*()`~", "'", '"', "''", '""', "'\"'", "\"''''\"'\"",
    "O'Brien", "O’Brien", "D''Arcy", "Jean-Luc", "Jean--Luc", "-Luc", "Luc-", "J. R. R.",
    "...", "a.b.c", "Ω≈ç√∫˜µ≤≥÷", "åß∂ƒ©˙∆˚¬…æ", "œ∑´®†¥¨ˆøπ“‘", "¡™£¢∞§¶•ªº–≠", "¸˛Ç◊ı˜Â¯˘¿",
    "ÅÍÎÏ˝ÓÔÒÚÆ☃", "Œ„´‰ˇÁ¨ˆØ∏”’", "`⁄€‹›ﬁﬂ‡°·‚—±", "⅛⅜⅝⅞", "‘’‚‛“”„‟", "⁰⁴⁵", "₀₁₂",
)  # fmt: skip

SCRIPTS = (
    "María José", "Nguyễn", "Ng\u0075\u0302\u0303", "Zoë", "Zoe\u0308", "Łukasz", "Þórður", "Ærø",
    "ЁЂЃЄЅІЇЈЉЊЋЌЍЎЏ", "Анна Ахматова", "田中さん", "田中", "パーティー", "和製漢語", "사회과학원",
    "울란바토르", "찦차를", "𠜎𠜱𠝹𠱓𠱸𠲖𠳏", "山田 太郎", "إقلاع", "هِيَ", "ﷺ", "ﷺﷺﷺﷺﷺﷺﷺﷺﷺﷺ", "مُنَاقَشَةُ سُبُلِ",
    "בְּרֵאשִׁית", "הָיְתָהtestالصفحات", "नेहा", "क्षत्रिय", "தமிழ்", "ไทย", "မြန်မာ", "ქართული", "Հայերեն",
    "ἄνθρωπος", "ΣΊΣΥΦΟΣ", "ıIİi", "ß", "ẞ", "ǆ", "ﬀ", "ﬃ", "Ⱥ", "Ⱦ", "K", "Å", "Ω", "ſ", "ŉ",
    "᚛ᚄᚓᚐᚋ", "𝔄𝔅𝔇", "Ｔｈｅ　ｑｕｉｃｋ", "𝐓𝐡𝐞", "ᵀʰᵉ", "ɐnbᴉlɐ", "ʇunpᴉpᴉɔuᴉ", "ＡＤＡ", "ada",
)  # fmt: skip

EMOJI = (
    "😍", "👩🏽", "👨‍🦰 👨🏿‍🦰", "👾 🙇 💁", "🐵 🙈 🙉 🙊", "❤️ 💔", "✋🏿 💪🏿", "👨‍👩‍👦 👨‍👩‍👧‍👦", "0️⃣ 1️⃣", "🇺🇸🇷🇺🇸",
    "(｡◕ ∀ ◕｡)", "ヽ༼ຈل͜ຈ༽ﾉ", "(╯°□°)╯︵ ┻━┻", "¯\\_(ツ)_/¯", "( ͡° ͜ʖ ͡°)", "´｡･*:･ﾟ",
)  # fmt: skip

INVISIBLE = (
    "\u200b", "\u200bAda", "A\u200dda", "\ufeff", "\ufeffAda", "\ufffe", "\uffff", "\ufffd",
    "\u180e", "\u2060", "\u00ad", "So\u00adlo", "\u034f", "\u061c", "\u115f", "\u3164", "\uffa0",
    "\u202aA\u202a", "\u202eadA", "\u2066A\u2069", "\u200eA", "\u200f", "\U000e0001", "\U000e0041",
    "\ufe0f", "\U000f0000", "\ue000", "\u0600", "\u06dd",
)  # fmt: skip

MARKUP = (
    "<script>alert(1)</script>", "&lt;script&gt;", "<svg><script>1</script>", '"><script>1</script>',
    "'><script>1</script>", "<img src=x onerror=1 />", "javascript:alert(1)", "<a href=`x`>",
    "<style>@import'x'</style>", "<!--#exec cmd='ls'-->", "<![CDATA[x]]>", "<?xml version='1.0'?>",
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "&#x41;", "&amp;", "%3Cb%3E", "<b>Ada",
    "</textarea>", "<math><mi//xlink:href='x'>", "\\x3cscript", "${{<%[%'\"}}%\\", "onfocus=1 autofocus",
)  # fmt: skip

INJECTION = (
    "1;DROP TABLE users", "1'; DROP TABLE users-- 1", "' OR 1=1 -- 1", "' OR '1'='1", "'; EXEC x",
    " ", "%", "_", "a%b_c", "$1", "$$", "E'\\x41'", "\\copy", "`ls -al /`", "$(touch /tmp/x)", "|| ls",
    "System('ls')", "eval('x')", "Kernel.exit(1)", "%x('ls')", "$HOME", "%HOMEDRIVE%", "$ENV{'HOME'}",
    "%d", "%s%s%s%s%s", "{0}", "{}", "{0.__class__}", "%*.*s", "%@%d", "%n", "{{7*7}}", "${7*7}",
    "#{7*7}", "<%= 7*7 %>", "{% debug %}", "../../../../etc/passwd", "..\\..\\x", "/dev/null; id",
    "() { 0; }; touch x", "() { _; } >_[$($())] { id; }", "=1+1", "=cmd|'/C calc'!A0", "+1", "@SUM(1)",
    "-1+1", "\t=1", "a\r\nBcc: x@example.org", "a\nb", "a\rb", "a%0d%0aSet-Cookie: x=1", "; ls", "*",
)  # fmt: skip

TERMINAL = (
    "\x1b[31mred\x1b[0m", "\x1b[2J", "\x07", "\x7f", "\x85", "\x9b31m", "\x00", "Ada\x00", "\x00Ada",
    "\x01\x02\x03", "\x1a", "\x1f", "\x80", "Roses are \x1b[0;31mred", "\t", "\v", "\f", "a\tb",
)  # fmt: skip

SPACES = tuple(
    chr(number)
    for number in range(0x10000)
    if chr(number).isspace() or unicodedata.category(chr(number)) in ("Zs", "Zl", "Zp")
)

LONG = (
    "x" * 100, "x" * 101, "x" * 254, "x" * 255, "x" * 10_000, "é" * 100, "e\u0301" * 100,
    "e\u0301" * 101, "😍" * 100, "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮", "a" + "\u0301" * 99, "a" + "\u0301" * 100,
    "a" + "\u0301" * 5_000, "\u0301", "\u0301Ada", "\ufdfa" * 100, " " * 200 + "Ada", "Ada" + " " * 200,
    "𐐀" * 100, "가" * 100, "\u1100\u1161" * 100, "\u1100\u1161" * 101,
)  # fmt: skip

UNFORTUNATE = (
    "Scunthorpe General Hospital", "Penistone Community Church", "Lightwater Country Park",
    "Jimmy Clitheroe", "Horniman Museum", "Linda Callahan", "Dr. Herman I. Libshitz", "Craig Cockburn",
    "Null", "Test", "Jenn Null", "Rachel True", "Christopher Dong", "Bytes", "X", "Ó", "A.", "Mr", "d'",
)  # fmt: skip

ADDRESSES = (
    "ada@example.org", "ADA@EXAMPLE.ORG", "ada+tag@example.org", "a.d.a@example.org", "a..a@example.org",
    ".ada@example.org", "ada.@example.org", '"ada lovelace"@example.org', '"a@b"@example.org',
    "ada@exa mple.org", "ada@example", "ada@localhost", "ada@[127.0.0.1]", "ada@[IPv6:::1]", "@x.org",
    "ada@", "ada", "ada@@example.org", "ada@-example.org", "ada@example-.org", "ada@exam_ple.org",
    "ada@example..org", "ada@.example.org", "ada@example.org.", "postmaster@example.org", "o'brien@example.org",
    "josé@example.org", "jose\u0301@example.org", "用户@例子.广告", "ada@müller.example.org",
    "ada@xn--mller-kva.example.org", "ada@faß.example.org", "ada@example。org", "ada@ＥＸＡＭＰＬＥ.org",
    "Ada <ada@example.org>", "ada@example.org,eve@example.org", "ada@example.org\n", "ada@example.org\0",
    "ada\r\nBcc: eve@example.org", "ada%0a@example.org", "!#$%&'*+-/=?^_`{|}~@example.org", "1@example.org",
    "ada@" + "x" * 63 + ".org", "ada@" + "x" * 64 + ".org", "x" * 64 + "@example.org",
    "x" * 65 + "@example.org", "ada@" + "a." * 122 + "org", "\u202eada@example.org", "ada@exam\u200bple.org",
    "аda@example.org", "ada@exаmple.org", "=1+1@example.org", "ada@example.test", "ada@example.invalid",
    "mailto:ada@example.org", "ada(comment)@example.org", "ada@example.org?subject=x", "😍@example.org",
)  # fmt: skip

CLASSES = (
    RESERVED, NUMBERS, PUNCTUATION, SCRIPTS, EMOJI, INVISIBLE, MARKUP, INJECTION, TERMINAL, SPACES,
    LONG, UNFORTUNATE, ADDRESSES,
)  # fmt: skip


def naughty_strings() -> list[str]:
    """All of them, each once, among other letters too."""
    return list(dict.fromkeys(_with_variations()))


def _with_variations() -> Iterator[str]:
    for texts in CLASSES:
        yield from texts
    for text in (*SPACES, *TERMINAL, *INVISIBLE):
        yield f"Ada{text}Eve"
        yield f"{text}Ada{text}"
    for text in SCRIPTS:
        yield from (unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD"))
