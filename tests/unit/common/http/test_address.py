import asyncio

import pytest

from common.http.address import OwnAddress


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:3000"),
        ("0.0.0.0", "http://127.0.0.1:3000"),  # noqa: S104 - only said
        ("192.0.2.7", "http://192.0.2.7:3000"),
        ("::", "http://[::1]:3000"),
        ("::1", "http://[::1]:3000"),
    ],
)
async def test_a_service_reaches_itself_by_the_socket_it_listens_on(host: str, url: str) -> None:
    address = OwnAddress()
    asking = asyncio.create_task(address.url())
    await asyncio.sleep(0)
    assert not asking.done()

    address.listens(host, 3000)

    assert await asking == url
