"""GET /kv: the live page. Static files without data, so outside /v1 and without the API key; all data come from /v1."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from models import HARBOUR

PATH = "/kv"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _pages() -> dict[str, bytes]:
    """File name -> content; also the text that samples ask about."""
    found = [*files("server").joinpath("page").iterdir(), HARBOUR]
    return {file.name: file.read_bytes() for file in found if _type(file.name) is not None}


def _type(name: str) -> str | None:
    return TYPES.get(name.rpartition(".")[2])


def attach(app: FastAPI) -> None:
    """The page and the files that it loads. Its links are relative, so that it works under any --root-path."""
    pages = _pages()

    async def show(name: str = "index.html") -> Response:
        if name not in pages:
            return JSONResponse({"detail": "Not Found"}, status_code=404)
        return Response(pages[name], headers={**HEADERS, "Content-Type": _type(name) or ""})

    async def show_index() -> Response:
        return await show()

    app.add_api_route(PATH, show_index, methods=["GET"], include_in_schema=False)
    app.add_api_route(PATH + "/{name}", show, methods=["GET"], include_in_schema=False)
