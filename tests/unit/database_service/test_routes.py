import pytest
from aiohttp.test_utils import make_mocked_request

from database_service.routes.paging import links, next_page, numbered
from database_service.routes.users import wanted_versions


@pytest.mark.parametrize(
    ("header", "versions"),
    [
        (None, None),
        ("*", None),
        ('"3"', [3]),
        ('"3", "14"', [3, 14]),
        ('W/"3", "4"', [4]),
        ('"x"', []),
        ('"٣"', []),
        ("3", []),
        ("", []),
    ],
)
def test_if_match_names_versions(header: str | None, versions: list[int] | None) -> None:
    headers = {} if header is None else {"If-Match": header}

    assert wanted_versions(make_mocked_request("PUT", "/", headers=headers)) == versions


def test_links_keep_the_path_and_name_the_page() -> None:
    request = make_mocked_request("GET", "/api/users?after=3&limit=2")

    header = links(request, next_page(5, 2))

    assert header == {"Link": '</api/users?after=5&limit=2>; rel="next"'}


def test_a_last_page_has_no_link() -> None:
    assert links(make_mocked_request("GET", "/api/users"), next_page(None, 2)) == {}


@pytest.mark.parametrize(
    ("page", "has_more", "relations"),
    [
        (1, False, {"first": 1}),
        (1, True, {"first": 1, "next": 2}),
        (3, True, {"first": 1, "prev": 2, "next": 4}),
        (3, False, {"first": 1, "prev": 2}),
    ],
)
def test_a_numbered_page_knows_the_pages_beside_it(
    page: int,
    has_more: bool,  # noqa: FBT001
    relations: dict[str, int],
) -> None:
    found = numbered(page, 10, has_more=has_more)

    assert {relation: query["page"] for relation, query in found.items()} == relations
    assert {query["limit"] for query in found.values()} == {10}
