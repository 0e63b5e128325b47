"""The operator's page: a few files that a browser runs, and nothing else.

What it shows and does comes from the native API, with the rights of whoever looks at it; the files
themselves tell nothing of the registry and need no account. There is no build step: what is served
is what lies in ``static``, but for the place of the API, which depends on the page's own path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from flask import Blueprint, Response, request

FILES = "dashboard"
"""Where the page's files are, below the page."""

_STATIC = Path(__file__).parent / "static"
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_UP = b'content="./"'
_HEADERS = {
    # Nothing but the page's own files runs or styles, no text becomes markup (trusted types), and
    # nothing is asked of any other server.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A newer server's files are asked for at once; unchanged ones are answered 304.
    "Cache-Control": "no-cache",
}


class _File(NamedTuple):
    body: bytes
    media: str
    tag: str


def blueprint(path: str) -> Blueprint:
    """The page at ``path`` (such as ``/`` or ``/ops/registry``), and ``/lastn`` below it."""
    routes = Blueprint("dashboard", __name__)
    base = path.rstrip("/")
    files = {each.name: _read(each) for each in _STATIC.iterdir() if each.suffix in _MEDIA}
    # What the page asks lies at the root, wherever the page is; a proxy may add a prefix to both.
    up = b'content="%b"' % (b"../" * base.count("/") or b"./")
    index = _file(files.pop(_INDEX).body.replace(_UP, up), ".html")

    @routes.get(f"{base}/")
    def page() -> Response:
        return _served(index)

    @routes.get(f"{base}/{FILES}/<name>")
    def file(name: str) -> Response:
        found = files.get(name)
        return Response(status=404) if found is None else _served(found)

    @routes.get(f"{base}/lastn")
    def last() -> Response:
        """Where the original lists its last registrations and cancels."""
        return Response(status=302, headers={"Location": "./?view=activity"})

    if base:

        @routes.get(base, strict_slashes=True)
        def without_slash() -> Response:
            # The page's files are named relative to it.
            return Response(status=308, headers={"Location": f"{base.rpartition('/')[2]}/"})

    return routes


def _read(path: Path) -> _File:
    return _file(path.read_bytes(), path.suffix)


def _file(body: bytes, ending: str) -> _File:
    return _File(body, _MEDIA[ending], hashlib.sha256(body).hexdigest()[:32])


def _served(file: _File) -> Response:
    response = Response(file.body, headers=_HEADERS, content_type=file.media)
    response.set_etag(file.tag)
    return response.make_conditional(request)  # type: ignore[return-value]
