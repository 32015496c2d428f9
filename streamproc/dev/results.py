"""A look into Redis: its keys in groups by the part before the first colon, as small tables."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

#: More keys than this are not looked through.
_KEYS_LIMIT = 2000
#: What exactly-once sinks keep beside their results.
_FENCE = re.compile(r"streamproc:\{p\d+\}:")


@dataclass(frozen=True)
class ResultTable:
    """Some of the keys of one group."""

    title: str
    columns: list[str]
    rows: list[list[str]]


async def read_results(client: Any, rows: int = 6) -> list[ResultTable]:
    """Read a table for each group of keys, with up to ``rows`` rows.

    ``client`` is a ``redis.asyncio.Redis`` that decodes replies.
    """
    keys: list[str] = []
    async for key in client.scan_iter(count=500):
        if not _FENCE.match(key):
            keys.append(key)
        if len(keys) >= _KEYS_LIMIT:
            break
    tables = []
    for prefix, group in groupby(sorted(keys), key=lambda key: key.partition(":")[0]):
        names = list(group)
        kind = await client.type(names[0])
        reader = _READERS.get(kind)
        if reader is not None:
            tables.append(await reader(client, _title(prefix, names, kind), names, rows))
    return tables


def _title(prefix: str, names: list[str], kind: str) -> str:
    if names == [prefix]:
        return f"{prefix} ({kind})"
    more = "+" if len(names) >= _KEYS_LIMIT else ""
    return f"{prefix}:* ({len(names):,}{more} × {kind})"


async def _hashes(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    found = {name: await client.hgetall(name) for name in names[:rows]}
    if len(names) == 1:
        pairs = [[field, _short(value)] for field, value in sorted(found[names[0]].items())]
        return ResultTable(title, ["field", "value"], pairs[:rows])
    fields = list(dict.fromkeys(field for hash in found.values() for field in hash))[:8]
    return ResultTable(
        title,
        ["key", *fields],
        [
            [name.partition(":")[2], *(_short(hash.get(field, "")) for field in fields)]
            for name, hash in found.items()
        ],
    )


async def _streams(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    name = names[0]
    entries = await client.xrevrange(name, count=rows)
    length = await client.xlen(name)
    fields = list(dict.fromkeys(field for _, entry in entries for field in entry))[:8]
    return ResultTable(
        f"{name}: newest of {length:,} entries",
        fields,
        [[_short(entry.get(field, "")) for field in fields] for _, entry in entries],
    )


async def _strings(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    values = await client.mget(names[:rows])
    pairs = zip(names, values, strict=False)
    return ResultTable(title, ["key", "value"], [[name, _short(value)] for name, value in pairs])


async def _lists(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    items = await client.lrange(names[0], 0, rows - 1)
    return ResultTable(title, [names[0]], [[_short(item)] for item in items])


async def _sets(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    sizes = [[name, f"{await client.scard(name):,}"] for name in names[:rows]]
    return ResultTable(title, ["key", "members"], sizes)


async def _sorted_sets(client: Any, title: str, names: list[str], rows: int) -> ResultTable:
    best = await client.zrevrange(names[0], 0, rows - 1, withscores=True)
    return ResultTable(
        title, [names[0], "score"], [[_short(member), f"{score:g}"] for member, score in best]
    )


_Reader = Callable[[Any, str, list[str], int], Awaitable[ResultTable]]
_READERS: dict[str, _Reader] = {
    "hash": _hashes,
    "stream": _streams,
    "string": _strings,
    "list": _lists,
    "set": _sets,
    "zset": _sorted_sets,
}


def _short(value: Any) -> str:
    """Cut long text, and give long fractions four digits."""
    text = str(value)
    try:
        number = float(text)
    except ValueError:
        return text if len(text) <= 40 else text[:39] + "…"
    return f"{number:.4f}" if "." in text and len(text.partition(".")[2]) > 4 else text
