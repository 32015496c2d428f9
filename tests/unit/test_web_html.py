"""The HTML of pages about tables: well formed, escaped, loading nothing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from streamproc.web import html
from streamproc.web.cluster import Answer, Missing
from streamproc.web.query import Query
from streamproc.web.reading import Row

EVIL = "\"><script>alert('x')</script>&amp;"
ALONE = {"meta", "input", "br"}


class Page(HTMLParser):
    """Reads a page: checks that tags are closed in order, and keeps tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)
            if self.open[-1] == "th":
                self.titles.append(data)

    def links(self) -> list[str | None]:
        return [attrs["href"] for tag, attrs in self.tags if tag == "a"]


def row(key: Any, value: Any, **more: Any) -> Row:
    entry = {"key": key, **more, "value": value, "partition": 0, "path": f"/tables/t/{key}/"}
    return Row(b"k", 0, msgspec.Raw(json.dumps(entry).encode()))


TABLE = SimpleNamespace(name=EVIL, key_type=str)

PAGES = {
    "list": html.list_page(
        EVIL,
        [
            {
                "name": EVIL,
                "help": EVIL,
                "kind": "Table",
                "key_type": EVIL,
                "value_type": None,
                "partitions": 4,
                "workers": {EVIL: [0, 1], "http://b": []},
            }
        ],
    ),
    "none": html.list_page("app", []),
    "table": html.table_page(
        TABLE,
        Query(),
        Answer(
            [row(EVIL, EVIL), row("b", None), row("c", [EVIL]), row("", 1.5)],
            True,
            [Missing(EVIL, [1], EVIL), Missing(None, [2], EVIL)],
        ),
        {"prefix": EVIL, "after": EVIL, "limit": EVIL},
    ),
    "records": html.table_page(
        TABLE, Query(), Answer([row("a", {EVIL: EVIL, "n": 1}), row({"b": EVIL}, {"n": 2})]), {}
    ),
    "empty": html.table_page(TABLE, Query(), Answer(), {}),
    "windows": html.key_page(
        TABLE,
        Query(key=EVIL),
        Answer(
            [row(EVIL, {"n": 1}, start=0, end=1500), row(EVIL, {"n": 1}, start=-(10**17), end=0)]
        ),
        {"from": EVIL},
    ),
    "key": html.key_page(TABLE, Query(key=EVIL), Answer([row(EVIL, {"n": {"m": EVIL}})]), {}),
    "error": html.error_page(503, EVIL, {"Retry-After": "1"}),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_well_formed_and_escaped(name):
    text = PAGES[name]
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in text
    for tag, attrs in page.tags:
        # Nothing is loaded, and nothing in the data became an attribute.
        assert not {"src", "onclick", "onload", "style"} & set(attrs), (tag, attrs)
        assert tag not in ("img", "link", "iframe")
    assert all(link and link[0] in "/?" for link in page.links())
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in page.tags


def test_what_a_table_page_shows():
    page = Page(PAGES["table"])
    text = " ".join(page.text)
    assert "Not complete." in text
    assert EVIL in text
    assert "(empty)" in text
    (following,) = [link for link in page.links() if link and "after=" in link]
    assert "prefix=" in following
    values = [attrs.get("value") for tag, attrs in page.tags if tag == "input"]
    assert EVIL in values


def test_fields_become_columns():
    assert Page(PAGES["records"]).titles == ["Key", EVIL, "n", "Partition"]


def test_times_of_windows():
    text = " ".join(Page(PAGES["windows"]).text)
    assert "1970-01-01 00:00:01.500" in text
    assert str(-(10**17)) in text


def test_an_error_that_will_pass_loads_the_page_again():
    assert ("meta", {"http-equiv": "refresh", "content": "1"}) in Page(PAGES["error"]).tags
