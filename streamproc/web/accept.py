"""Which form of an answer a client prefers."""

from __future__ import annotations

from typing import Any


def wants_html(request: Any) -> bool:
    """True for a browser: when HTML is named in ``Accept``, and JSON isn't preferred to it.

    ``?format=json`` and ``?format=html`` decide it by the address.
    """
    asked = request.query.get("format")
    if asked in ("json", "html"):
        return bool(asked == "html")
    weights = _weights(request.headers.get("Accept", ""))
    html = weights.get("text/html", 0.0)
    return html > 0 and html >= weights.get("application/json", 0.0)


def _weights(accept: str) -> dict[str, float]:
    weights = {}
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[media] = weight
    return weights
