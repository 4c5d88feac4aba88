# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm serve --diffusion-page``: prompts, denoised live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.bundled import is_bundled
from vllm.v1.diffusion.pages.fill import filled

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI

PATH = "/diffusion"

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_EXAMPLES = ("sudoku 1003/0300/3210/4132=", "sort 83142=", "reverse stone=")
"""Prompts that the bundled models answer."""


class DiffusionPage:
    """The page's route, in the way of upstream's ``EndpointPlugin``."""

    name = "diffusion-page"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._page = ""

    def attach_router(self, app: FastAPI) -> None:
        """Adds the route to a server."""
        from fastapi.responses import HTMLResponse

        async def page() -> HTMLResponse:
            return HTMLResponse(self._page, headers=_HEADERS)

        app.add_api_route(PATH, page, methods=["GET"], include_in_schema=False)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Makes the page for the model that is served.

        Raises:
            ValueError: It is no diffusion model, or none is served.
        """
        config = getattr(engine_client, "vllm_config", None)
        if config is None or config.diffusion_config is None:
            raise ValueError(
                "--diffusion-page needs a server of a diffusion model: the page shows blocks being denoised."
            )
        bundled = is_bundled(config.model_config.model)
        data = {
            "model": (args.served_model_name or [config.model_config.model])[0],
            "block": config.diffusion_config.block_length,
            "examples": list(_EXAMPLES) if bundled else [],
            "chat": not bundled,
        }
        self._page = filled(__package__, "page.html", data)


def attach_page(app: FastAPI, args: Namespace) -> None:
    """Adds the page to a server where its option is given.

    Args:
        app: The server. Upstream shows what it keeps as ``endpoint_plugins`` the engine.
        args: The server's arguments.
    """
    if not getattr(args, "diffusion_page", False):
        return
    page = DiffusionPage()
    page.attach_router(app)
    app.state.endpoint_plugins = [*app.state.endpoint_plugins, page]
