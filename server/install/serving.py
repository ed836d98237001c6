"""What devices fetch before they have anything of ours: the installer and its wheels, over plain HTTP.

Both are public and are compared with digests on the device, so whoever sits in between can read what everybody may read,
and change nothing. Nothing is written and nobody is asked who they are.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from fleetfit.core.errors import NotFound
from fleetfit.server.install.installer import Installers

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def make_app(installers: Installers) -> Starlette:
    """The routes: `/` is the installer, `/wheels/NAME` a wheel that it names."""

    async def installer(request: Request) -> Response:
        made = await installers.current()
        if made is None:
            text = "there are no wheels here yet; run `fleetfit server wheels fetch` on the server\n"
            return PlainTextResponse(text, 404, _HEADERS)
        return Response(made.content, media_type="text/x-python", headers=_HEADERS)

    async def wheel(request: Request) -> Response:
        try:
            path = await installers.wheel(request.path_params["name"])
        except NotFound as error:
            return PlainTextResponse(error.message + "\n", 404, _HEADERS)
        return FileResponse(path, media_type="application/zip", headers=_HEADERS)

    return Starlette(routes=[Route("/", installer), Route("/wheels/{name}", wheel)])
