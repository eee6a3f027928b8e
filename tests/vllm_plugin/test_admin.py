"""Removing an intervention from a running server, without vLLM."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from lineas.vllm_plugin import admin


def test_a_place_is_freed_when_no_request_of_before_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was checked before the removal may reach the engine after it; what comes later does not matter."""
    arriving, states, freed = {"call"}, {"running": 1}, []

    async def collective_rpc(method: str, args: tuple[int, ...]) -> None:
        freed.append((method, args))

    registry = SimpleNamespace(loaded={"calm": SimpleNamespace(place=3)}, arriving=arriving)
    monkeypatch.setattr(admin, "registry", lambda: registry)
    monkeypatch.setattr(admin, "PAUSE", 0)
    server: Any = admin.Interventions()
    server._engine = SimpleNamespace(
        output_processor=SimpleNamespace(request_states=states), collective_rpc=collective_rpc
    )

    async def settle() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def remove() -> None:
        removal = asyncio.create_task(server._remove("calm"))
        await settle()
        assert registry.loaded == {}
        del states["running"]
        await settle()
        assert freed == []  # one is on the way
        states["arrived"] = 1
        arriving.clear()
        await settle()
        assert freed == []
        states["later"] = 1
        del states["arrived"]
        await removal

    asyncio.run(remove())
    assert freed == [("lineas_clear", (3,))]
