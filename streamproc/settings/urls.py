"""Redis URLs with login and TLS in them, as redis-py takes them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode


def redis_url(
    url: str,
    *,
    username: str | None,
    password: str | None,
    tls: bool,
    ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    key_password: str | None,
    check_hostname: bool,
) -> str:
    """Return ``url`` with what it doesn't say itself added: what stands in it wins."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    login, _, place = rest.rpartition("@")
    there = dict(parse_qsl(query))
    if scheme == "unix":
        login = _login(login, username, password)
        return _joined(scheme, login, place, query)
    if tls or ca_file or certificate_file:
        scheme = scheme.replace("redis", "rediss", 1) if not scheme.startswith("rediss") else scheme
    options: dict[str, str] = {}
    if scheme.startswith("rediss"):
        wanted = {
            "ssl_ca_certs": ca_file,
            "ssl_certfile": certificate_file,
            # redis-py wants both, also where one file has both.
            "ssl_keyfile": key_file or certificate_file,
            "ssl_password": key_password,
            "ssl_check_hostname": "true" if check_hostname else "false",
        }
        options = {n: value for n, value in wanted.items() if value and n not in there}
    query = "&".join(filter(None, (query, urlencode(options, safe="/", quote_via=quote))))
    return _joined(scheme, _login(login, username, password), place, query)


def _login(login: str, username: str | None, password: str | None) -> str:
    user, colon, word = login.partition(":")
    if not user and username:
        user = quote(username, safe="")
    if not colon and password:
        colon, word = ":", quote(password, safe="")
    return f"{user}{colon}{word}"


def _joined(scheme: str, login: str, place: str, query: str) -> str:
    return f"{scheme}://{login}{'@' if login else ''}{place}{'?' if query else ''}{query}"
