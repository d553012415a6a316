"""Mailpit's JSON API, as far as tests use it: the same paths, fields and status codes.

https://mailpit.axllent.org/docs/api-v1/ says what each means.
"""

import asyncio
import email.utils
import json
import re
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tools.mailcatcher.headers import (
    Address,
    Headers,
    all_headers,
    clean,
    decode_words,
    parse_addresses,
)
from tools.mailcatcher.message import Attachment, Content, read_content
from tools.mailcatcher.search import Query
from tools.mailcatcher.store import Entry, MailStore

STORE: web.AppKey[MailStore] = web.AppKey("store", MailStore)

PAGE_SIZE = 50
"""Mails of a list where the client names no ``limit``."""

LARGEST_NUMBER = 10**9
"""Beyond it a ``start`` or ``limit`` is nonsense."""

PICTURES = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
"""Attachments a browser may show: types that carry no script."""

routes = web.RouteTableDef()


@routes.get("/livez")
@routes.get("/readyz")
async def answer_health(_request: web.Request) -> web.Response:
    """200 as soon as the catcher listens: it depends on nothing."""
    return web.Response(text="ok")


@routes.get("/api/v1/messages")
async def list_messages(request: web.Request) -> web.Response:
    """Mails, newest first."""
    store = request.app[STORE]
    start, limit = page_of(request)
    ids = store.ids(start=start, limit=limit)
    return await _answer_list(store, ids, start=start, matching=len(store), unread=store.unread)


@routes.get("/api/v1/search")
async def search_messages(request: web.Request) -> web.Response:
    """Mails that match ``query``, newest first."""
    store = request.app[STORE]
    start, limit = page_of(request)
    found = await search_ids(store, _query_of(request))
    unread = sum(not store.is_read(mail_id) for mail_id in found)
    page = found[start : start + limit]
    return await _answer_list(store, page, start=start, matching=len(found), unread=unread)


@routes.delete("/api/v1/messages")
async def delete_messages(request: web.Request) -> web.Response:
    """Forget the mails named in ``{"IDs": […]}``; all of them where none is named."""
    store = request.app[STORE]
    return await _delete(store, _ids_in(await request.read()) or store.ids())


@routes.delete("/api/v1/search")
async def delete_found(request: web.Request) -> web.Response:
    """Forget the mails that match ``query``."""
    store = request.app[STORE]
    return await _delete(store, await search_ids(store, _query_of(request)))


@routes.get("/api/v1/message/{id}")
async def get_message(request: web.Request) -> web.Response:
    """One mail, decoded; from now on it counts as read."""
    store = request.app[STORE]
    entry, raw = await find_mail(request)
    store.mark_read(entry.id)
    return _json(await asyncio.to_thread(_message, entry, raw))


@routes.get("/api/v1/message/{id}/headers")
async def get_headers(request: web.Request) -> web.Response:
    """Every header of a mail, by name, still encoded."""
    _, raw = await find_mail(request)
    found: dict[str, list[str]] = {}
    for name, value in all_headers(raw):
        found.setdefault(_canonical(name), []).append(value)
    return _json(dict(sorted(found.items())))


@routes.get("/api/v1/message/{id}/raw")
async def get_raw(request: web.Request) -> web.Response:
    """A mail as it came, with its envelope in front."""
    entry, raw = await find_mail(request)
    response = web.Response(body=raw, content_type="text/plain", charset="utf-8")
    if request.query.get("dl") == "1":
        response.headers["Content-Disposition"] = f'attachment; filename="{entry.id}.eml"'
    return response


@routes.get("/api/v1/message/{id}/part/{part_id}")
async def get_part(request: web.Request) -> web.Response:
    """What hangs on a mail; only pictures are shown, anything else is a download."""
    _, raw = await find_mail(request)
    content = await asyncio.to_thread(read_content, raw)
    for part in content.attachments:
        if part.part_id == request.match_info["part_id"]:
            return _download(part)
    raise not_found()


def page_of(request: web.Request) -> tuple[int, int]:
    """``start`` and ``limit`` of the query; nonsense counts as not given, as in Mailpit."""
    return _number(request, "start", 0), _number(request, "limit", PAGE_SIZE)


async def search_ids(store: MailStore, query: str) -> list[str]:
    """Ids of the mails that match, newest first."""
    ids = store.ids()
    return await asyncio.to_thread(lambda: list(Query.parse(query).search(store, ids)))


async def find_mail(request: web.Request) -> tuple[Entry, bytes]:
    """The mail an address names; ``latest`` is the newest, or the newest matching ``query``.

    Raises:
        HTTPNotFound: There is none such, or it was deleted meanwhile.
    """
    store = request.app[STORE]
    mail_id = request.match_info["id"]
    if mail_id == "latest":
        query = request.query.get("query", "").strip()
        newest = await search_ids(store, query) if query else store.ids(limit=1)
        mail_id = newest[0] if newest else ""
    entry, raw = await asyncio.to_thread(lambda: (store.entry(mail_id), store.read(mail_id)))
    if entry is None or raw is None:
        raise not_found()
    return entry, raw


def not_found() -> web.HTTPNotFound:
    """Mailpit's words for a mail that is not there."""
    return web.HTTPNotFound(text="404 page not found")


def _query_of(request: web.Request) -> str:
    if query := request.query.get("query", "").strip():
        return query
    raise web.HTTPBadRequest(text="Error: no search query")


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < len(str(LARGEST_NUMBER))):
        return default
    return int(text)


async def _delete(store: MailStore, ids: list[str]) -> web.Response:
    gone = store.delete(ids)
    await asyncio.to_thread(store.remove_files, gone)
    return web.Response(text="ok")


def _ids_in(body: bytes) -> list[str]:
    try:
        match json.loads(body):
            case {"IDs": [*ids]}:
                return [mail_id for mail_id in ids if isinstance(mail_id, str)]
    except (ValueError, RecursionError):
        pass  # Mailpit takes a body it cannot read for none
    return []


async def _answer_list(
    store: MailStore, ids: list[str], *, start: int, matching: int, unread: int
) -> web.Response:
    messages = await asyncio.to_thread(lambda: list(filter(None, (summary(store, i) for i in ids))))
    return _json(
        {
            "total": len(store),
            "unread": store.unread,
            "count": len(messages),
            "messages_count": matching,
            "messages_unread": unread,
            "start": start,
            "tags": [],
            "messages": messages,
        }
    )


def summary(store: MailStore, mail_id: str) -> dict[str, Any] | None:
    """A mail as lists show it; None if it was deleted meanwhile."""
    entry, digest = store.entry(mail_id), store.digest(mail_id)
    if entry is None or digest is None:
        return None
    return {
        "ID": entry.id,
        "MessageID": clean(entry.headers.message_id),
        "Read": store.is_read(entry.id),
        **_envelope(entry.headers),
        "Subject": decode_words(entry.headers.subject),
        "Created": _rfc3339(entry.received),
        "Username": "",
        "Tags": [],
        "Size": entry.size,
        "Attachments": digest.attachments,
        "Snippet": digest.snippet,
    }


def _message(entry: Entry, raw: bytes) -> dict[str, Any]:
    headers = Headers.scan(raw)
    content = read_content(raw)
    others = {name.lower(): value for name, value in reversed(all_headers(raw))}
    return {
        "ID": entry.id,
        "MessageID": headers.message_id,
        **_envelope(headers),
        "ReturnPath": others.get("return-path", "").strip("<>"),
        "Subject": decode_words(headers.subject),
        "ListUnsubscribe": _list_unsubscribe(others),
        "Date": _rfc3339(_parse_date(others.get("date", "")) or entry.received),
        "Tags": [],
        "Username": "",
        "Text": content.text,
        "HTML": content.html,
        "Size": entry.size,
        **_attachments(content),
    }


def _envelope(headers: Headers) -> dict[str, Any]:
    senders = parse_addresses(headers.sender)
    return {
        "From": _address(senders[0] if senders else Address("", "")),
        "To": [_address(mailbox) for mailbox in parse_addresses(headers.to)],
        "Cc": [_address(mailbox) for mailbox in parse_addresses(headers.cc)],
        "Bcc": [_address(mailbox) for mailbox in parse_addresses(headers.bcc)],
        "ReplyTo": [_address(mailbox) for mailbox in parse_addresses(headers.reply_to)],
    }


def _address(mailbox: Address) -> dict[str, str]:
    return {"Name": mailbox.name, "Address": mailbox.address}


def _list_unsubscribe(headers: dict[str, str]) -> dict[str, Any]:
    header = headers.get("list-unsubscribe", "")
    links = re.findall(r"<\s*((?:https?://|mailto:)[^>\s]+)\s*>", header, re.IGNORECASE)
    return {
        "Header": header,
        "Links": links,
        "Errors": "no links found" if header and not links else "",
        "HeaderPost": headers.get("list-unsubscribe-post", ""),
    }


def _attachments(content: Content) -> dict[str, Any]:
    return {
        "Inline": [_attachment(part) for part in content.attachments if part.inline],
        "Attachments": [_attachment(part) for part in content.attachments if not part.inline],
    }


def _attachment(part: Attachment) -> dict[str, Any]:
    return {
        "PartID": part.part_id,
        "FileName": part.file_name or part.content_id,
        "ContentType": part.content_type,
        "ContentID": part.content_id,
        "Size": len(part.content),
        "Checksums": {name: part.checksum(name) for name in ("MD5", "SHA1", "SHA256")},
    }


def _download(part: Attachment) -> web.Response:
    shown = part.content_type in PICTURES
    response = web.Response(
        body=part.content,
        content_type=part.content_type if shown else "application/octet-stream",
    )
    if not shown:
        name = re.sub(r"[^\w. -]", "_", part.file_name or part.part_id, flags=re.ASCII)
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _canonical(name: str) -> str:
    # Mailpit answers with Go's spelling: Message-Id, Mime-Version.
    return "-".join(word.capitalize() for word in name.split("-"))


def _parse_date(value: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(body: Any) -> web.Response:
    return web.json_response(body)
