import asyncio

import pytest

from common.context import (
    current,
    current_ids,
    enter_message,
    enter_request,
    outgoing_headers,
    span_of,
    valid_traceparent,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_sane_ids_of_a_request_are_taken_over() -> None:
    enter_request({"X-Request-Id": "r-1", "X-Correlation-Id": "c:1._-", "traceparent": TRACE})

    assert current_ids() == {
        "request_id": "r-1",
        "correlation_id": "c:1._-",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    assert (current().traceparent[:36], current().traceparent[52:]) == (TRACE[:36], TRACE[52:])


async def test_requests_of_one_trace_are_spans_of_their_own() -> None:
    """Also of a client that sends the same header again."""
    spans = {span_of(enter_request({"traceparent": TRACE}).traceparent) for _ in range(100)}

    assert len(spans - {span_of(TRACE)}) == 100
    assert valid_traceparent(current().traceparent) == current().traceparent
    assert span_of(TRACE) == "b7ad6b7169203331"
    assert span_of("") == ""


@pytest.mark.parametrize("given", [TRACE, "cc" + TRACE[2:], "01" + TRACE[2:] + "-what-comes-later"])
def test_a_trace_of_any_version_is_taken_over(given: str) -> None:
    assert valid_traceparent(given) == TRACE


@pytest.mark.parametrize(
    "odd",
    [
        "ff" + TRACE[2:], TRACE + "-more", TRACE.upper(), TRACE[:-1], f" {TRACE}", f"{TRACE}\n",
        "00-" + "0" * 32 + TRACE[35:], TRACE[:36] + "0" * 16 + "-01", "01" + TRACE[2:] + "more",
        "01" + TRACE[2:] + "-\n", None, 7, TRACE.replace("a", "\N{CYRILLIC SMALL LETTER A}"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_not_taken_over(odd: object) -> None:
    assert valid_traceparent(odd) == ""


@pytest.mark.parametrize(
    "odd", ["", " ", "a b", "x" * 129, "r\n", "r\r\nSet-Cookie: a=b", "é", "<b>"]
)
async def test_odd_ids_of_a_request_are_replaced(odd: str) -> None:
    context = enter_request({"X-Request-Id": odd, "X-Correlation-Id": odd, "traceparent": odd})

    assert len(context.request_id) == 32
    assert context.correlation_id == context.request_id
    assert context.traceparent.startswith("00-")
    assert len(context.traceparent) == len(TRACE)


async def test_a_request_without_ids_gets_new_ones() -> None:
    first, second = enter_request({}), enter_request({})

    assert first.request_id
    assert first.request_id != second.request_id
    assert first.traceparent != second.traceparent


async def test_ids_go_on_to_the_next_service() -> None:
    enter_request({"X-Request-Id": "r-1", "X-Correlation-Id": "c-1", "traceparent": TRACE})

    assert outgoing_headers() == {
        "X-Request-Id": "r-1",
        "X-Correlation-Id": "c-1",
        "traceparent": current().traceparent,
    }
    assert current().traceparent.startswith(TRACE[:36])


async def test_unknown_ids_are_not_sent() -> None:
    enter_message("m-1", "c-1", "")

    assert outgoing_headers() == {"X-Correlation-Id": "c-1"}
    assert current_ids() == {"correlation_id": "c-1", "message_id": "m-1"}


async def test_tasks_do_not_see_each_others_ids() -> None:
    both = asyncio.Barrier(2)

    async def handle(message_id: str) -> str:
        enter_message(message_id, "c", "")
        await both.wait()
        return current().message_id

    tasks = [asyncio.create_task(handle(message_id)) for message_id in ("m-1", "m-2")]

    assert await asyncio.gather(*tasks) == ["m-1", "m-2"]
