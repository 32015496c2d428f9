"""Pages that tell of an error show no secrets."""

from __future__ import annotations

import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from streamproc import App
from streamproc.records.secrets import MASK
from streamproc.web.guard import masked_errors

URL = "redis://:word-4711@cache:6379/0"


async def answer(handler) -> web.Response:
    return await masked_errors(make_mocked_request("GET", "/page"), handler)


async def test_errors_are_masked() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=503, body=f'{{"reason": "{URL} is away"}}'.encode())

    assert (await answer(refuse)).text == f'{{"reason": "redis://:{MASK}@cache:6379/0 is away"}}'


async def test_data_stays_as_it_is() -> None:
    async def show(_: web.Request) -> web.Response:
        return web.Response(text=URL)

    assert (await answer(show)).text == URL


async def test_an_unknown_error_goes_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: web.Request) -> web.Response:
        raise ValueError(URL)

    with caplog.at_level(logging.ERROR):
        response = await answer(fail)
    assert response.status == 500
    assert "4711" not in (response.text or "")
    assert "GET /page failed" in caplog.text


async def test_http_errors_pass() -> None:
    async def missing(_: web.Request) -> web.Response:
        raise web.HTTPNotFound

    with pytest.raises(web.HTTPNotFound):
        await answer(missing)


def test_every_app_has_it(tmp_path) -> None:
    app = App("guarded", datadir=str(tmp_path), store="memory://")
    assert masked_errors in app.web.web_app.middlewares
