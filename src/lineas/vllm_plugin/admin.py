"""Endpoints that add and remove interventions on a running server (entry point `vllm.endpoint_plugins`).

`GET /lineas/interventions` lists the loaded interventions. If `LINEAS_ADMIN_KEY` is set, and a request has it in the
header `X-Lineas-Admin-Key`, `POST /lineas/interventions {"name": "calm", "folder": "DIR"}` adds an intervention and
`DELETE /lineas/interventions/calm` removes one. vLLM loads endpoints only if `VLLM_PLUGINS` names them; `lineas serve`
sets it.
"""

from __future__ import annotations

import asyncio
import secrets
from argparse import Namespace
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from lineas.errors import LineasError, first_line, shown
from lineas.files import strict_json
from lineas.vllm_plugin import registry
from lineas.vllm_plugin.frontend import Loaded
from lineas.vllm_plugin.settings import ADMIN_KEY

PATH = "/lineas/interventions"
PAUSE = 0.05
"""Seconds between two looks at the running requests."""
LONGEST = 16_384
"""Maximum number of bytes of a request's body."""


class Interventions:
    """The endpoints, with the attributes and methods that vLLM's plugins must have."""

    name = "lineas"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._alone = True
        self._changing = asyncio.Lock()

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Store the engine; vLLM calls this when it has started."""
        self._engine = engine_client
        counts = ("api_server_count", "data_parallel_size")
        self._alone = all((getattr(args, count, None) or 1) == 1 for count in counts)

    def attach_router(self, app: Any) -> None:
        """Add the routes to vLLM's FastAPI application."""
        from fastapi import Header, Request  # pyright: ignore[reportMissingImports]
        from fastapi.responses import JSONResponse  # pyright: ignore[reportMissingImports]

        async def with_key(key: str | None, status_of_failure: int, change: Callable[[], Awaitable[None]]) -> Any:
            status = 403
            try:
                self._check_key(key)
                status = status_of_failure
                async with self._changing:
                    await change()
            except LineasError as error:
                return JSONResponse({"error": {"message": str(error), "code": status}}, status_code=status)
            return self._listing(whole=True)

        async def show(x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            return self._listing(whole=self._is_key(x_lineas_admin_key))

        async def add(request: Any, x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            async def change() -> None:
                await self._add(*read_post(await _body(request)))

            return await with_key(x_lineas_admin_key, 400, change)

        async def remove(name: str, x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            return await with_key(x_lineas_admin_key, 404, lambda: self._remove(name))

        # FastAPI needs types, but annotations are strings here, and FastAPI cannot look up these local names
        show.__annotations__ |= {"x_lineas_admin_key": str | None}
        add.__annotations__ |= {"request": Request, "x_lineas_admin_key": str | None}
        remove.__annotations__ |= {"name": str, "x_lineas_admin_key": str | None}
        for function, method, path in ((show, "GET", PATH), (add, "POST", PATH), (remove, "DELETE", PATH + "/{name}")):
            app.add_api_route(path, function, methods=[method], response_model=None)

    def _listing(self, whole: bool) -> dict[str, Any]:
        """Return the names of the loaded interventions, and the other facts about them if `whole` is True."""
        current = registry()
        if not whole:
            return {"interventions": [{"name": name} for name in current.loaded]}
        loaded = [{"name": name, "support": one.support, "folder": one.folder} for name, one in current.loaded.items()]
        return {"interventions": loaded, "places": current.settings.places}

    def _check_key(self, key: str | None) -> None:
        if registry().settings.admin_key is None:
            raise LineasError(f"this server was started without {ADMIN_KEY}, so its interventions cannot be changed.")
        if not self._is_key(key):
            raise LineasError("the header X-Lineas-Admin-Key does not hold this server's key.")
        if not self._alone:
            raise LineasError("interventions can be added and removed with one API server and one engine only.")

    def _is_key(self, key: str | None) -> bool:
        own = registry().settings.admin_key
        return own is not None and key is not None and secrets.compare_digest(key.encode(), own.encode())

    async def _add(self, name: str, folder: str) -> None:
        """Load an intervention into a free place."""
        place = registry().free_place(name)
        try:
            loaded = await asyncio.to_thread(Loaded.of, place, folder)
        except OSError as error:
            raise LineasError(f"the folder {shown(folder)} cannot be read: {first_line(error)}.") from None
        problems = await self._engine.collective_rpc("lineas_put", args=(place, folder, name, loaded.content))
        if problem := next(filter(None, problems), None):
            raise LineasError(problem)
        registry().loaded[name] = loaded

    async def _remove(self, name: str) -> None:
        """Refuse new requests for an intervention, wait until the running ones have ended, and free its place."""
        removed = registry().loaded.pop(name, None)
        if removed is None:
            names = ", ".join(sorted(registry().loaded)) or "none"
            raise LineasError(f"there is no intervention {shown(name)} here. Loaded: {names}.")
        await _gone(registry().arriving)  # checked before the removal, and not yet in the engine
        await _gone(self._engine.output_processor.request_states)  # running, queued and preempted alike
        await self._engine.collective_rpc("lineas_clear", args=(removed.place,))


def read_post(body: bytes) -> tuple[str, str]:
    """Return the name and the folder from a request's body, a JSON object with both as strings."""
    posted = None
    with suppress(LineasError):
        posted = strict_json.loads(body)
    if not isinstance(posted, dict) or not all(isinstance(posted.get(key), str) for key in ("name", "folder")):
        raise LineasError('the body must be {"name": "calm", "folder": "DIR"}, in JSON.')
    if "\0" in posted["folder"]:
        raise LineasError(f"no folder has the name {shown(posted['folder'])}.")
    return posted["name"], posted["folder"]


async def _gone(requests: Collection[Any]) -> None:
    """Wait until none of the present requests is left in a collection that changes meanwhile."""
    present = set(requests)
    while not present.isdisjoint(requests):
        await asyncio.sleep(PAUSE)


async def _body(request: Any) -> bytes:
    """Return a request's body, or raise a LineasError if it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            raise LineasError(f"the body must have at most {LONGEST} bytes.")
    return body
