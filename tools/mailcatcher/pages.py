"""The page people read mails on: made here, so that it works without JavaScript."""

import asyncio
import re
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import jinja2
from aiohttp import web

from common.http.server import connection_limit
from tools.mailcatcher.api import PAGE_SIZE, STORE, find_mail, page_of, search_ids, summary
from tools.mailcatcher.headers import Headers, all_headers, clean, decode_words, parse_addresses
from tools.mailcatcher.message import Content, read_content
from tools.mailcatcher.store import Entry, MailStore

TEMPLATES: web.AppKey[jinja2.Environment] = web.AppKey("templates", jinja2.Environment)
LISTENERS: web.AppKey[set[asyncio.Task[Any]]] = web.AppKey("listeners", set)

SHOWN_LIMIT = 200_000
"""Characters of text or source put into a page; the rest is a download away."""

LIVE_PAUSE = timedelta(milliseconds=500)
"""Between two live updates: a flood of mails must not become a flood of page loads."""

HEARTBEAT = timedelta(seconds=15)
"""Between two signs of life on a quiet connection, so that a closed one is noticed."""

PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)

MAIL_POLICY = (
    # What an unknown sender wrote: no script, no form, nothing fetched from elsewhere. Links open
    # in a window of their own, because following the one in the mail is what one came for.
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; "
    "img-src 'self' data:; style-src 'unsafe-inline'; font-src data:; frame-ancestors 'self'"
)

KILOBYTE, MEGABYTE = 10**3, 10**6

_HEAD = re.compile(r"<head(?:\s[^>]*)?>|<!doctype[^>]*>", re.IGNORECASE)

routes = web.RouteTableDef()


@routes.get("/")
async def show_list(request: web.Request) -> web.Response:
    """The mails, newest first, or those that match ``query``."""
    store = request.app[STORE]
    start, limit = page_of(request)
    limit = min(limit, PAGE_SIZE)
    query = request.query.get("query", "").strip()
    version = store.version
    found = await search_ids(store, query) if query else None
    ids = store.ids(start=start, limit=limit) if found is None else found[start : start + limit]
    mails = await asyncio.to_thread(lambda: list(filter(None, (summary(store, i) for i in ids))))
    matching = len(store) if found is None else len(found)
    return _render(
        request,
        "list.html",
        mails=mails,
        query=clean(query),
        matching=matching,
        total=len(store),
        version=version,
        start=start,
        newer=max(0, start - limit) if start else None,
        older=start + limit if start + limit < matching else None,
    )


@routes.get("/view/{id:[^/.]+}")
async def show_mail(request: web.Request) -> web.Response:
    """One mail: its HTML, text, source or headers."""
    try:
        entry, raw = await find_mail(request)
    except web.HTTPNotFound:
        return _render(request, "missing.html", status=404)
    request.app[STORE].mark_read(entry.id)
    content = await asyncio.to_thread(read_content, raw)
    tab = request.query.get("tab", "")
    if tab not in {"html", "text", "source", "headers"} or (tab == "html" and not content.html):
        tab = "html" if content.html else "text"
    return _render(request, "mail.html", tab=tab, **_mail(entry, raw, content, tab))


@routes.get("/view/{id:[^/.]+}.html")
async def show_html(request: web.Request) -> web.Response:
    """The HTML of a mail alone, harmless; 404 if it has none."""
    entry, raw = await find_mail(request)
    content = await asyncio.to_thread(read_content, raw)
    if not content.html:
        raise web.HTTPNotFound(text="This message does not contain a HTML part")
    html = _link_pictures(entry, content)
    if "framed" in request.query:
        html = _open_links_outside(html)
    response = web.Response(text=html, content_type="text/html")
    response.headers["Content-Security-Policy"] = MAIL_POLICY
    return response


@routes.get("/view/{id:[^/.]+}.txt")
async def show_text(request: web.Request) -> web.Response:
    """The text of a mail alone."""
    _, raw = await find_mail(request)
    return web.Response(text=(await asyncio.to_thread(read_content, raw)).text)


@routes.get("/delete")
async def ask_delete(request: web.Request) -> web.Response:
    """Ask once more, without JavaScript too."""
    return _render(request, "delete.html", total=len(request.app[STORE]))


@routes.post("/delete")
async def delete_all(request: web.Request) -> web.Response:
    """Delete every mail."""
    store = request.app[STORE]
    await asyncio.to_thread(store.remove_files, store.delete(store.ids()))
    raise web.HTTPSeeOther("/")


@routes.get("/events")
async def stream_changes(request: web.Request) -> web.StreamResponse:
    """Tell an open page, by server-sent events, the version and size of the mailbox."""
    if len(request.app[LISTENERS]) >= connection_limit() // 2:
        raise web.HTTPServiceUnavailable(text="Too many pages are open.")
    if task := asyncio.current_task():
        request.app[LISTENERS].add(task)
        task.add_done_callback(request.app[LISTENERS].discard)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionResetError):  # the page was closed
        await _write_changes(response, request.app[STORE])
    return response


async def end_streams(app: web.Application) -> None:
    """Close the live connections; they would hold up the shutdown."""
    listeners = app[LISTENERS]
    for task in tuple(listeners):
        task.cancel()


async def set_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the strictest policy it can live with."""
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    fresh = "no-cache" if request.path.startswith("/static/") else "no-store"
    response.headers.setdefault("Cache-Control", fresh)


def load_templates(**always: object) -> jinja2.Environment:
    """The page templates; what is in ``always`` every one of them may use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tools.mailcatcher"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(always)
    environment.filters["mailboxes"] = _mailboxes
    environment.filters["size"] = _size
    return environment


async def _write_changes(response: web.StreamResponse, store: MailStore) -> NoReturn:
    seen = 0
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT.total_seconds()):
                seen = await store.wait_beyond(seen)
            await response.write(f"id: {seen}\ndata: {len(store)}\n\n".encode())
        except TimeoutError:
            await response.write(b": still here\n\n")
        await asyncio.sleep(LIVE_PAUSE.total_seconds())


def _render(request: web.Request, template: str, *, status: int = 200, **what: Any) -> web.Response:
    text = request.app[TEMPLATES].get_template(template).render(what)
    return web.Response(text=clean(text), content_type="text/html", status=status)


def _mail(entry: Entry, raw: bytes, content: Content, tab: str) -> dict[str, Any]:
    headers = Headers.scan(raw)
    source = raw[:SHOWN_LIMIT].decode("utf-8", "replace") if tab == "source" else ""
    return {
        "entry": entry,
        "subject": decode_words(headers.subject),
        "people": [
            (label, ", ".join(map(str, parse_addresses(value))))
            for label, value in (
                ("From", headers.sender),
                ("To", headers.to),
                ("Cc", headers.cc),
                ("Bcc", headers.bcc),
                ("Reply to", headers.reply_to),
            )
            if value
        ],
        "message_id": headers.message_id,
        "has_html": bool(content.html),
        "attachments": content.attachments,
        "text": content.text[:SHOWN_LIMIT],
        "source": source,
        "cut": len(raw) > SHOWN_LIMIT if tab == "source" else len(content.text) > SHOWN_LIMIT,
        "headers": [(name, decode_words(value)) for name, value in all_headers(raw)],
    }


def _link_pictures(entry: Entry, content: Content) -> str:
    """Point ``cid:`` addresses (RFC 2392) at the parts they name."""
    parts = {part.content_id: part.part_id for part in content.attachments if part.content_id}

    def address(match: re.Match[str]) -> str:
        part_id = parts.get(match[1])
        return f"/api/v1/message/{entry.id}/part/{part_id}" if part_id else match[0]

    return re.sub(r"\bcid:([^\"'\s<>)]+)", address, content.html)


def _open_links_outside(html: str) -> str:
    # Within the frame a link would load the linked page into it, and most refuse that.
    position = max((match.end() for match in _HEAD.finditer(html[:10_000])), default=0)
    return f'{html[:position]}<base target="_blank">{html[position:]}'


def _mailboxes(addresses: list[dict[str, str]]) -> str:
    return ", ".join(mailbox["Name"] or mailbox["Address"] for mailbox in addresses)


def _size(count: int) -> str:
    if count >= MEGABYTE:
        return f"{count / MEGABYTE:.1f} MB"
    return f"{count / KILOBYTE:.1f} kB" if count >= KILOBYTE else f"{count} bytes"
