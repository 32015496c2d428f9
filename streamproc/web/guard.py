"""No secret leaves by a page that tells of an error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from streamproc.records.secrets import mask

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def masked_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Mask secrets in answers of status 400 and above, and say nothing of unknown errors.

    Those are logged; aiohttp would show their traceback where the event loop debugs.
    """
    try:
        response = await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return web.Response(status=500, text="The worker failed at this page; its log says how.\n")
    if response.status >= 400 and isinstance(response, web.Response):
        text = response.text
        if text and (shown := mask(text)) != text:
            response.text = shown
    return response
