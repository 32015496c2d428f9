"""Requests to the worker that has a key, for ``@app.table_route`` and ``@app.topic_route``.

Faust's router hashes the key as JSON, where the source topic has other bytes, and forwards
no body. Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from faust.app.router import Router as FaustRouter
from faust.exceptions import SameNode
from faust.web.exceptions import ServiceUnavailable, ValidationError
from yarl import URL

from streamproc.errors import DecodeError
from streamproc.web.cluster import CONNECT_TIMEOUT, RETRY_AFTER, Cluster, NotNow, on_loop_of
from streamproc.web.keys import parse_key

#: Marks a request that another worker has forwarded: it goes no further.
FORWARDED = "Streamproc-Forwarded"

#: Seconds that a forwarded request may take.
FORWARD_TIMEOUT = 60.0

#: Headers that are about a connection or its encoding, not about what it carries.
_OF_CONNECTION = {
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


def unavailable(reason: str) -> ServiceUnavailable:
    """Return the error that a client sees as status 503, with when to try again."""
    return ServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)})


class Router(FaustRouter):  # type: ignore[misc]
    """Finds the worker that has a key, by what the source topic's partitioner does with it."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.cluster = Cluster(app)

    def key_store(self, table_name: str, key: Any) -> URL:
        """Return the address of the worker that has a key.

        Raises:
            KeyError: None is known now.
        """
        try:
            return self._owner(self._get_table(table_name), key)
        except NotNow as exc:
            raise KeyError(str(exc)) from exc

    def _owner(self, table: Any, key: Any) -> URL:
        self.cluster.require_ready()
        if isinstance(key, str):
            key = parse_key(table, key)
        return URL(self.cluster.owner(table, table.partition_of(key)))

    async def route_req(self, table_name: str, key: Any, web: Any, request: Any) -> Any:
        """Forward a request to the worker that has ``key``.

        Args:
            table_name: Name of the table.
            key: The key, or its text.
            web: The web server.
            request: The request.

        Raises:
            SameNode: It is this worker.
            ServiceUnavailable: No worker has it for sure now, or it can't be reached.
            ValidationError: The text isn't a key of the table.
        """
        try:
            destination = self._owner(self._get_table(table_name), key)
        except NotNow as exc:
            raise unavailable(str(exc)) from exc
        except DecodeError as exc:
            raise ValidationError(str(exc)) from exc
        return await self._route_req(destination, web, request)

    async def route_topic_req(self, topic: Any, key: Any, web: Any, request: Any) -> Any:
        """Forward a request to the worker that reads the partition of ``key``."""
        try:
            self.cluster.require_ready()
            destination = self.external_topic_key_store(topic, key)
        except (NotNow, KeyError) as exc:
            raise unavailable(f"No worker is known that has this key now: {exc}") from exc
        return await self._route_req(destination, web, request)

    async def _route_req(self, dest_url: URL, web: Any, request: Any) -> Any:
        if str(dest_url) == self.cluster.own_url:
            raise SameNode()
        if FORWARDED in request.headers:
            raise unavailable("The request was forwarded to a worker that doesn't have its key")
        body = await request.read()
        status, headers, content = await on_loop_of(
            self.app, self._forward(dest_url, request, body)
        )
        response = web.bytes(content, status=status)
        response.headers.clear()
        response.headers.extend(headers)
        return response

    async def _forward(self, destination: URL, request: Any, body: bytes) -> tuple[int, Any, bytes]:
        address = self.cluster.address(str(destination))
        url = request.url.with_scheme(address.scheme).with_host(str(address.host))
        headers = _end_to_end(request.headers)
        headers.append((FORWARDED, self.cluster.own_url))
        session = await self.cluster.session()
        timeout = aiohttp.ClientTimeout(total=FORWARD_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        try:
            async with session.request(
                request.method,
                url.with_port(address.port),
                headers=headers,
                data=body or None,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                return response.status, _end_to_end(response.headers), await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as exc:
            raise unavailable(
                f"The worker that has the key, {destination}, did not answer: "
                f"{type(exc).__name__} {exc}".rstrip()
            ) from exc


def _end_to_end(headers: Any) -> list[tuple[str, str]]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in _OF_CONNECTION and name.lower() not in named
    ]
