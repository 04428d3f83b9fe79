"""A slimd as slimctl sees it: the real admin server on a real socket, and answers made up here."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slim.broker.admin import messages
from slim.broker.admin.server import AdminServer
from slim.broker.observing import Observing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_S = 5.0


def status(**changed: object) -> messages.Status:
    values: dict[str, object] = {
        "version": "1.2.3",
        "host": "a",
        "guard": "portable",
        "config": "/etc/slim/slimd.toml",
        "run_dir": "/run/slim",
        "uptime_s": 61.0,
        "host_addresses": ["192.0.2.1"],
        "host_ports": "20000-29999",
        "overlays": ["blue: 10.1.0.0/16"],
        "processes": [messages.ProcessStatus("control", 41), messages.ProcessStatus("traps", 0)],
        "peers": [
            messages.PeerStatus("b", "192.0.2.2:7946", "connected", "", 0.0, 0.42),
            messages.PeerStatus("", "192.0.2.3:7946", "failed", "Connection refused", 7.0, 0.0),
        ],
        "workloads": 1,
        "containers": 2,
        "listeners": 3,
        "connections": 4,
        "counters": {"lookups": 17},
    }
    return messages.Status(**{**values, **changed})  # type: ignore[arg-type]


def container(**changed: object) -> messages.Container:
    values: dict[str, object] = {
        "container": "0123456789abcdef",
        "workload": "web",
        "namespace": "shop",
        "labels": {"tier": "front", "app": "web"},
        "overlay": "blue",
        "addresses": ["10.1.0.2", "fd00:ab::2"],
        "pid": 4711,
        "command": ["nginx", "-g", "daemon off;"],
        "age_s": 3723.0,
        "fail_mode": "open",
        "isolated": ["ingress"],
        "listeners": 1,
        "connections": 5,
    }
    return messages.Container(**{**values, **changed})  # type: ignore[arg-type]


def connection(**changed: object) -> messages.Connection:
    values: dict[str, object] = {
        "direction": "out",
        "workload": "web",
        "process": "4711/nginx",
        "overlay_local": "10.1.0.2:40000",
        "overlay_peer": "10.1.1.2:80",
        "host_local": "192.0.2.1:40000",
        "host_peer": "192.0.2.2:20001",
        "path": "fast",
        "reason": "",
        "verdict": "allow",
        "rule": "rules:web",
        "state": "established",
        "age_s": 5.0,
        "cookie": 7,
    }
    return messages.Connection(**{**values, **changed})  # type: ignore[arg-type]


def listener(**changed: object) -> messages.Connection:
    values: dict[str, object] = {
        "direction": "listen",
        "overlay_local": "0.0.0.0:80",
        "overlay_peer": "",
        "host_local": "192.0.2.1:20000",
        "host_peer": "",
        "rule": "",
        "state": "listen",
    }
    return connection(**{**values, **changed})


@dataclass
class FakeProvider:
    """An admin.server.AdminProvider; with `error` set, every question raises it."""

    status_answer: messages.Status = field(default_factory=status)
    container_rows: list[messages.Container] = field(default_factory=lambda: [container()])
    connection_rows: list[messages.Connection] = field(default_factory=lambda: [connection()])
    plugin_rows: list[messages.Plugin] = field(
        default_factory=lambda: [
            messages.Plugin(
                "rules", "1.0", ["decide"], [messages.HookCost("decide", 2000, 1, 0.022, 0.0042)]
            )
        ]
    )
    error: Exception | None = None
    pid: int = 0
    """Whom Stopping names."""
    stops: list[bool] = field(default_factory=list)
    reload_error: Exception | None = None
    reloaded: messages.Reloaded = field(default_factory=lambda: messages.Reloaded([], []))
    cuts: list[int] = field(default_factory=list)
    changes_answers: list[messages.Changes] = field(default_factory=list)
    asked_after: list[int] = field(default_factory=list)
    observing: Observing = field(default_factory=Observing)
    gone: list[int] = field(default_factory=list)
    """Connections that end before they can be cut."""

    async def status(self) -> messages.Status:
        self._fail()
        return self.status_answer

    async def containers(self) -> messages.Containers:
        self._fail()
        return messages.Containers(self.container_rows)

    async def connections(self) -> messages.Connections:
        self._fail()
        return messages.Connections(self.connection_rows)

    def plugins(self) -> messages.Plugins:
        self._fail()
        return messages.Plugins(self.plugin_rows)

    async def changes(self, after: int) -> messages.Changes:
        self._fail()
        self.asked_after.append(after)
        return self.changes_answers.pop(0)

    async def events(self, asked: messages.GetEvents) -> messages.Events:
        self._fail()
        await self.observing.wait(asked.after, asked.wait_s)
        return messages.Events(*self.observing.after(asked.after, asked.limit))

    async def reload(self) -> messages.Reloaded:
        self._fail()
        if self.reload_error is not None:
            raise self.reload_error
        return self.reloaded

    async def cut(self, cookies: list[int]) -> messages.CutDone:
        self._fail()
        self.cuts += cookies
        return messages.CutDone([cookie for cookie in cookies if cookie not in self.gone])

    async def explain(self, asked: messages.Explain) -> messages.Explanation:
        step = messages.ExplainStep("a", "source", asked.source)
        return messages.Explanation([step], "fast", f"to {asked.destination}", "default")

    def stop_from_admin(self, release: bool) -> messages.Stopping:
        self._fail()
        self.stops.append(release)
        return messages.Stopping(self.pid)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def serving(run_dir: Path, provider: FakeProvider) -> Iterator[Path]:
    """Serve `run_dir/admin.sock` from a thread of its own; gives the run_dir."""
    started = threading.Event()
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def serve() -> None:
        nonlocal stop, loop
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = AdminServer(provider)
        await server.start(run_dir / "admin.sock")
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fake slimd")
    thread.start()
    try:
        assert started.wait(START_S), "the admin server did not start"
        yield run_dir
    finally:
        if started.is_set():
            loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
        assert not thread.is_alive()
