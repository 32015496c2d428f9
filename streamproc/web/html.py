"""Plain HTML of the pages about tables. Everything that comes from data is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from streamproc.web.cluster import Answer, Missing
from streamproc.web.keys import encode_json, key_text
from streamproc.web.query import DEFAULT_LIMIT, MAX_LIMIT, Query

#: A page runs nothing and loads nothing.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}

#: Most columns into which the fields of values are spread.
MAX_COLUMNS = 12

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem; }
nav { margin-bottom: .5rem; } h1 { font-size: 1.4rem; margin: .25rem 0 1rem; }
h1, dd { overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
a { color: LinkText; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: max-content; min-width: 100%; }
th, td { text-align: left; padding: .45rem .7rem; vertical-align: top;
  border-bottom: 1px solid var(--line); min-width: 4rem; max-width: 32rem; }
tr:last-child td { border-bottom: 0; } th { background: var(--soft); font-weight: 600; }
td.num { font-variant-numeric: tabular-nums; overflow-wrap: normal; }
td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: .9em ui-monospace, monospace; }
form { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0 0 1rem; align-items: end; }
label { font-size: .85rem; display: grid; flex: 1 1 9rem; max-width: 18rem; }
input, button { font: inherit; padding: .4rem .6rem; border: 1px solid var(--line);
  border-radius: 6px; width: 100%; background: Field; color: FieldText; }
button { width: auto; cursor: pointer; background: var(--soft); color: inherit; }
.warn { border: 1px solid #c80; border-left-width: 6px; border-radius: 6px; padding: .6rem .9rem;
  margin: 0 0 1rem; } .warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.pages { display: flex; gap: 1.5rem; margin-top: 1rem; } .none { padding: 1rem; opacity: .7; }
"""


def _page(title: str, body: str, head: str = "") -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{head}<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def error_page(status: int, reason: str, headers: Mapping[str, str]) -> str:
    """Say what went wrong; the browser tries again when that may help."""
    wait = headers.get("Retry-After")
    again = f"<p>The page is loaded again in {escape(wait)} s.</p>" if wait else ""
    head = f'<meta http-equiv="refresh" content="{escape(wait)}">' if wait else ""
    body = f'{_back()}<h1>{int(status)}</h1><p class="warn">{escape(reason)}</p>{again}'
    return _page(f"{int(status)}", body, head)


def list_page(app: str, tables: Iterable[dict[str, Any]]) -> str:
    """List the tables of an app."""
    rows = []
    for table in tables:
        types = f"{table['key_type'] or 'any'} → {table['value_type'] or 'any'}"
        link = f'<a href="{_path(table["name"])}">{escape(table["name"])}</a>'
        owners = _owners(table["workers"])
        cells = (link, escape(table["help"]), escape(table["kind"]), escape(types), owners)
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = ("Table", "About", "Kind", "Key → value", "Workers and their partitions")
    body = f"<h1>Tables of {escape(app)}</h1>{_grid(head, rows, 'There are no tables.')}"
    return _page(f"Tables of {app}", body)


def _owners(workers: Mapping[str, list[int]] | None) -> str:
    if workers is None:
        return "all workers have all partitions"
    named = [
        f"{escape(url)}: {', '.join(map(str, parts)) or 'none'}" for url, parts in workers.items()
    ]
    return "<br>".join(named)


def table_page(table: Any, query: Query, answer: Answer, given: Mapping[str, str]) -> str:
    """Show a page of a table's entries."""
    search = _form(
        ("prefix", "Key starts with", given.get("prefix", ""), "text"),
        ("limit", f"Rows (to {MAX_LIMIT})", given.get("limit", str(DEFAULT_LIMIT)), "number"),
        button="Search",
    )
    find = _form(("key", "Key", "", "text"), button="Find")
    body = (
        f"{_back()}<h1>{escape(table.name)}</h1>{search}{find}{_warning(answer.missing)}"
        f"{_rows(answer, link=True)}{_pages(answer, given)}"
    )
    return _page(table.name, body)


def key_page(table: Any, query: Query, answer: Answer, given: Mapping[str, str]) -> str:
    """Show what a key has."""
    text = key_text(table, query.key)
    windowed = "start" in _entries(answer)[0]
    times = ""
    if windowed or query.from_ms is not None or query.to_ms is not None:
        times = _form(
            ("from", "From (UTC, or ms since 1970)", given.get("from", ""), "text"),
            ("to", "To", given.get("to", ""), "text"),
            button="Show windows",
            hidden={"key": text},
            action=_path(table.name),
        )
    body = (
        f'{_back()} · <a href="{_path(table.name)}">{escape(table.name)}</a>'
        f"<h1><code>{escape(text)}</code></h1>{times}{_rows(answer, link=False)}"
        f"{_pages(answer, {**given, 'key': text}, _path(table.name))}"
    )
    return _page(f"{text} in {table.name}", body)


# -- parts


def _path(name: str) -> str:
    return escape(f"/tables/{quote(name, safe='')}/")


def _back() -> str:
    return '<a href="/tables/">Tables</a>'


def _form(
    *fields: tuple[str, str, str, str],
    button: str,
    hidden: Mapping[str, str] = {},
    action: str = "",
) -> str:
    parts = [
        f'<label>{escape(label)}<input name="{name}" type="{kind}" value="{escape(value)}"></label>'
        for name, label, value, kind in fields
    ]
    parts += [
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in hidden.items()
    ]
    where = f' action="{action}"' if action else ""
    return f"<form{where}>{''.join(parts)}<button>{escape(button)}</button></form>"


def _warning(missing: Iterable[Missing]) -> str:
    items = [
        f"<li>partitions {', '.join(map(str, each.partitions))}"
        f"{' of ' + escape(each.worker) if each.worker else ''}: {escape(each.reason)}</li>"
        for each in missing
    ]
    if not items:
        return ""
    return f'<div class="warn"><b>Not complete.</b><ul>{"".join(items)}</ul></div>'


def _pages(answer: Answer, given: Mapping[str, str], path: str = "") -> str:
    kept = {name: value for name, value in given.items() if name != "after" and value}
    first = f'<a href="{path}?{escape(urlencode(kept))}">First page</a>' if "after" in given else ""
    later = ""
    if answer.next:
        address = urlencode({**kept, "after": answer.next})
        later = f'<a rel="next" href="{path}?{escape(address)}">Next page</a>'
    return f'<p class="pages">{first}{later}</p>' if first or later else ""


def _entries(answer: Answer) -> list[dict[str, Any]]:
    return [msgspec.json.decode(row.entry) for row in answer.rows]


def _rows(answer: Answer, link: bool) -> str:
    entries = _entries(answer)
    windowed = any("start" in entry for entry in entries)
    columns = _columns([entry["value"] for entry in entries])
    head = [*(["Key"] if link else []), *(["From", "To"] if windowed else [])]
    head += [*(columns or ["Value"]), "Partition"]
    return _grid(head, [_row(entry, columns, link) for entry in entries], "There are no entries.")


def _columns(values: list[Any]) -> list[str]:
    """Return the fields of values, when each is a record of a few."""
    if not all(isinstance(value, dict) and value for value in values):
        return []
    names = list(dict.fromkeys(name for value in values for name in value))
    return names if len(names) <= MAX_COLUMNS else []


def _row(entry: dict[str, Any], columns: list[str], link: bool) -> str:
    cells = []
    if link:
        key = entry["key"] if isinstance(entry["key"], str) else _json(entry["key"])
        shown = f"<code>{escape(key) or '(empty)'}</code>"
        cells.append(f'<td><a href="{escape(entry["path"])}">{shown}</a></td>')
    if "start" in entry:
        cells += [f'<td class="time">{_time(entry[name])}</td>' for name in ("start", "end")]
    value = entry["value"]
    cells += [_cell(value.get(name, "")) for name in columns] if columns else [_cell(value)]
    return "".join([*cells, _cell(entry["partition"])])


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="num">{escape(_json(value))}</td>'
    return f"<td><code>{escape(_json(value))}</code></td>"


def _json(value: Any) -> str:
    return encode_json(value).decode()


def _time(milliseconds: int) -> str:
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    text = moment.strftime("%Y-%m-%d %H:%M:%S")
    return text + (f".{milliseconds % 1000:03d}" if milliseconds % 1000 else "")


def _grid(head: Iterable[str], rows: list[str], empty: str) -> str:
    titles = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    if not rows:
        return f'<div class="wide"><p class="none">{escape(empty)}</p></div>'
    return f'<div class="wide"><table><tr>{titles}</tr>{body}</table></div>'
