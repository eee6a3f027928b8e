"""Interventions added to and removed from a running server (entry point `vllm.endpoint_plugins`).

`GET /lineas/interventions` lists what is loaded. With `LINEAS_ADMIN_KEY` set, and shown in the header
`X-Lineas-Admin-Key`, `POST /lineas/interventions {"name": "calm", "folder": "DIR"}` adds one and
`DELETE /lineas/interventions/calm` removes one. vLLM loads endpoints only when `VLLM_PLUGINS` names them, as
`lineas serve` does.
"""

from __future__ import annotations

import asyncio
import secrets
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import Any

from lineas.errors import LineasError, first_line, shown
from lineas.files import strict_json
from lineas.vllm_plugin import registry
from lineas.vllm_plugin.frontend import Loaded
from lineas.vllm_plugin.settings import ADMIN_KEY

PATH = "/lineas/interventions"
ON_THE_WAY = 0.2
"""Seconds in which a request that was checked before a removal reaches the engine."""
LONGEST = 16_384
"""Bytes of what a client posts."""


class Interventions:
    """vLLM's contract for endpoints: a name, the tasks they belong to, routes, and the engine they reach."""

    name = "lineas"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._alone = True
        self._changing = asyncio.Lock()

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Called by vLLM once the engine is there."""
        self._engine = engine_client
        counts = ("api_server_count", "data_parallel_size")
        self._alone = all((getattr(args, count, None) or 1) == 1 for count in counts)

    def attach_router(self, app: Any) -> None:
        """Called by vLLM: the routes."""
        from fastapi import Header, Request  # pyright: ignore[reportMissingImports]
        from fastapi.responses import JSONResponse  # pyright: ignore[reportMissingImports]

        def refused(error: LineasError, status: int) -> Any:
            return JSONResponse({"error": {"message": str(error), "code": status}}, status_code=status)

        async def changed(key: str | None, status: int, change: Callable[[], Awaitable[None]]) -> Any:
            try:
                self._check_key(key)
            except LineasError as error:
                return refused(error, 403)
            try:
                async with self._changing:
                    await change()
            except LineasError as error:
                return refused(error, status)
            return self._listing(whole=True)

        async def show(x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            return self._listing(whole=self._is_key(x_lineas_admin_key))

        async def add(request: Any, x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            async def change() -> None:
                await self._add(*read_post(await _body(request)))

            return await changed(x_lineas_admin_key, 400, change)

        async def remove(name: str, x_lineas_admin_key: str | None = Header(default=None)) -> Any:
            return await changed(x_lineas_admin_key, 404, lambda: self._remove(name))

        # annotations are strings here and would be looked up in the module: give FastAPI the real ones
        show.__annotations__ |= {"x_lineas_admin_key": str | None}
        add.__annotations__ |= {"request": Request, "x_lineas_admin_key": str | None}
        remove.__annotations__ |= {"name": str, "x_lineas_admin_key": str | None}
        for function, method, path in ((show, "GET", PATH), (add, "POST", PATH), (remove, "DELETE", PATH + "/{name}")):
            app.add_api_route(path, function, methods=[method], response_model=None)

    def _listing(self, whole: bool) -> dict[str, Any]:
        """Return what is loaded: names alone, and the rest for who has the key."""
        known = registry()
        if not whole:
            return {"interventions": [{"name": name} for name in known.loaded]}
        loaded = [{"name": name, "support": at.support, "folder": at.folder} for name, at in known.loaded.items()]
        return {"interventions": loaded, "places": known.settings.places}

    def _check_key(self, shown: str | None) -> None:
        if registry().settings.admin_key is None:
            raise LineasError(f"this server was started without {ADMIN_KEY}, so its interventions stay as they are.")
        if not self._is_key(shown):
            raise LineasError("the header X-Lineas-Admin-Key does not hold this server's key.")
        if self._alone is False:
            raise LineasError("interventions can be added and removed with one API server and one engine only.")

    def _is_key(self, shown: str | None) -> bool:
        key = registry().settings.admin_key
        return key is not None and shown is not None and secrets.compare_digest(shown.encode(), key.encode())

    async def _add(self, name: str, folder: str) -> None:
        """Give an intervention a place that no request uses."""
        place = registry().free_place(name)
        try:
            loaded = await asyncio.to_thread(Loaded.of, place, folder)
        except OSError as error:
            raise LineasError(f"the folder {shown(folder)} cannot be read: {first_line(error)}.") from None
        problems = await self._engine.collective_rpc("lineas_put", args=(place, folder, name, loaded.content))
        if told := next(filter(None, problems), None):
            raise LineasError(told)
        registry().loaded[name] = loaded

    async def _remove(self, name: str) -> None:
        """Refuse new requests for an intervention, wait until those that are there have ended, then free its place."""
        gone = registry().loaded.pop(name, None)
        if gone is None:
            names = ", ".join(sorted(registry().loaded)) or "none"
            raise LineasError(f"there is no intervention {shown(name)} here. Loaded: {names}.")
        await asyncio.sleep(ON_THE_WAY)
        waiting = set(self._engine.output_processor.request_states)  # running, queued and preempted alike
        while waiting & self._engine.output_processor.request_states.keys():
            await asyncio.sleep(ON_THE_WAY)
        await self._engine.collective_rpc("lineas_clear", args=(gone.place,))


def read_post(body: bytes) -> tuple[str, str]:
    """The name and the folder that a client posted.

    Raises:
        LineasError: when the body is not JSON with these two, both texts.
    """
    try:
        said = strict_json.loads(body)
    except LineasError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in ("name", "folder")):
        raise LineasError('what is added is written as {"name": "calm", "folder": "DIR"}, in JSON.')
    if "\0" in said["folder"]:
        raise LineasError(f"no folder has the name {shown(said['folder'])}.")
    return said["name"], said["folder"]


async def _body(request: Any) -> bytes:
    """Return what a client posted, so far as it is of a size that is read.

    Raises:
        LineasError: when it is larger.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            raise LineasError(f"what is added is written in at most {LONGEST} bytes.")
    return body
