"""The page at GET /: a form that ranks responses, and what the judge says of them; nothing of it is from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gram_fast.serving.endpoint import accounted
from gram_fast.serving.service import Service

_FOLDER = Path(__file__).with_suffix("")
# The page's addresses are relative, so that it works behind a proxy that puts a folder before them.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/results.js": ("results.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(router: APIRouter, service: Service) -> None:
    """Adds the page and its files. They are open to everybody: they hold nothing of the judge, and ask with the key."""
    for path, (name, kind) in _FILES.items():
        _add_file(router, service, path, (_FOLDER / name).read_bytes(), kind)


def _add_file(router: APIRouter, service: Service, path: str, content: bytes, kind: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(content, headers=_HEADERS | {"Content-Type": kind})

    router.add_api_route(
        path, accounted(service, path, answer), methods=["GET"], response_model=None, include_in_schema=False, name=path
    )
