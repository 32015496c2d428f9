"""The pages ``/tables/``, ``/tables/{name}/`` and ``/tables/{name}/{key}/``.

They answer for the whole group, from any worker: a program with JSON, a browser with HTML.
Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from faust import web
from faust.web.exceptions import WebError

from streamproc.errors import DecodeError
from streamproc.web import html
from streamproc.web.accept import wants_html
from streamproc.web.cluster import GENERATION, Answer, Cluster, NotNow, on_loop_of
from streamproc.web.keys import encode_json, key_json
from streamproc.web.query import Query, read_query
from streamproc.web.router import unavailable


class _Blueprint(web.Blueprint):  # type: ignore[misc]
    def on_webserver_init(self, web: Any) -> None:
        web.add_dependency(web.app.router.cluster)


blueprint = _Blueprint("streamproc-tables")

_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}


class TablesView(web.View):  # type: ignore[misc]
    """What the pages share: two forms of answers and of errors."""

    @property
    def cluster(self) -> Cluster:
        cluster: Cluster = self.app.router.cluster
        return cluster

    async def get(self, request: Any, **where: str) -> Any:
        return await on_loop_of(self.app, self._answer(request, **where))

    async def _answer(self, request: Any, **where: str) -> Any:
        try:
            self.cluster.require_ready()
            return await self.answer(request, **where)
        except NotNow as exc:
            raise unavailable(str(exc)) from exc
        except DecodeError as exc:
            raise self.ValidationError(str(exc)) from exc

    async def answer(self, request: Any, **where: str) -> Any:
        """Answer a request; subclasses say how."""
        raise NotImplementedError

    async def on_request_error(self, request: Any, exc: WebError) -> Any:
        headers = exc.extra_context.get("headers", {})
        if not wants_html(request):
            return self.error(exc.code, exc.detail, headers={**_HEADERS, **headers})
        return self.html_page(html.error_page(exc.code, exc.detail, headers), exc.code, headers)

    def table(self, name: str) -> Any:
        """Return a table of the app.

        Raises:
            NotFound: There is none of that name.
        """
        try:
            return self.app.tables[name]
        except KeyError:
            raise self.NotFound(f"There is no table {name!r}") from None

    def json_page(self, content: Any) -> Any:
        return self.bytes(encode_json(content), content_type="application/json", headers=_HEADERS)

    def html_page(self, text: str, status: int = 200, headers: Mapping[str, str] = {}) -> Any:
        return self.html(text, status=status, headers={**_HEADERS, **html.HEADERS, **headers})


@blueprint.route("/tables", name="list-bare")
@blueprint.route("/tables/", name="list")
class TableList(TablesView):
    """
    ---
    description: The tables of the app, and which worker has which partitions of them.
    tags:
    - Faust
    produces:
    - application/json
    - text/html
    """

    async def answer(self, request: Any, **where: str) -> Any:
        """Return the list of tables."""
        tables = [self._described(table) for _, table in sorted(self.app.tables.items())]
        if wants_html(request):
            return self.html_page(html.list_page(self.app.conf.id, tables))
        return self.json_page({"app": self.app.conf.id, "tables": tables})

    def _described(self, table: Any) -> dict[str, Any]:
        return {
            "name": table.name,
            "help": table.help or "",
            "kind": type(table).__name__,
            "key_type": _type_name(table.key_type),
            "value_type": _type_name(table.value_type),
            "partitions": table.partition_count,
            "workers": None if table.is_replicated else self.cluster.owners(table),
        }


def _type_name(declared: Any) -> str | None:
    if declared in (None, Any):
        return None
    return getattr(declared, "__name__", None) or str(declared)


@blueprint.route("/tables/{name}", name="detail-bare")
@blueprint.route("/tables/{name}/", name="detail")
@blueprint.route("/tables/{name}/{key:[^/]+}", name="key-bare")
@blueprint.route("/tables/{name}/{key:[^/]+}/", name="key")
class TableDetail(TablesView):
    """
    ---
    description: Entries of a table in the order of their keys, or those of one key.
    tags:
    - Faust
    parameters:
    - in: path
      name: name
      type: string
      required: true
    produces:
    - application/json
    - text/html
    """

    async def answer(self, request: Any, **where: str) -> Any:
        """Return a page of entries, or what a key has."""
        table = self.table(where["name"])
        query = read_query(table, request.query, where.get("key"))
        if GENERATION in request.headers:
            return self.json_page(self.cluster.answer_peer(table, query, request.headers))
        if query.has_key:
            return await self._of_key(request, table, query)
        return self._list(request, table, query, await self.cluster.gather(table, query))

    def _list(self, request: Any, table: Any, query: Query, answer: Answer) -> Any:
        if wants_html(request):
            return self.html_page(html.table_page(table, query, answer, request.query))
        content: dict[str, Any] = {
            "table": table.name,
            "entries": [row.entry for row in answer.rows],
            "next": answer.next,
            "complete": not answer.missing,
        }
        if answer.missing:
            content["missing"] = answer.missing
        return self.json_page(content)

    async def _of_key(self, request: Any, table: Any, query: Query) -> Any:
        for reading in query.readings(table):
            answer = await self.cluster.find(table, reading)
            if answer.rows:
                return self._found(request, table, reading, answer)
        raise self.NotFound(f"Table {table.name!r} has no such key")

    def _found(self, request: Any, table: Any, query: Query, answer: Answer) -> Any:
        if wants_html(request):
            return self.html_page(html.key_page(table, query, answer, request.query))
        found = [msgspec.json.decode(row.entry, type=dict[str, msgspec.Raw]) for row in answer.rows]
        content = {"table": table.name, "key": msgspec.Raw(key_json(query.key))}
        return self.json_page({**content, **_of_one_key(found, answer)})


def _of_one_key(found: list[dict[str, msgspec.Raw]], answer: Answer) -> dict[str, Any]:
    """Say what a key has: windows, a value, or values where several partitions have it."""
    for entry in found:
        del entry["key"], entry["path"]
    if "start" in found[0]:
        return {"windows": found, "next": answer.next}
    return found[0] if len(found) == 1 else {"entries": found}
