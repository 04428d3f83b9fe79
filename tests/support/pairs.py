"""A client and a server without Slim, and the same with it: what is compared call by call."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pprint import pformat
from typing import TYPE_CHECKING, Any, Literal

from support.probes import peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.residents import Forked, Resident

GREETING_PORT = 8000
"""Of the greeting servers; plus the version of the Internet protocol."""
ANYWHERE = {4: "0.0.0.0", 6: "::"}
CONTENDERS = ("native", "brokered")
Path = Literal["host", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A client on host a, a server on host b and the address to reach it at."""

    is_brokered: bool
    version: int
    client: Resident
    server: Resident
    port: int
    """Of the greeting server."""

    @property
    def address(self) -> str:
        return self.server.address(self.version)

    @property
    def own(self) -> str:
        """The client's address."""
        return self.client.address(self.version)

    @property
    def anywhere(self) -> str:
        return ANYWHERE[self.version]

    @property
    def path(self) -> Path:
        """Whose socket a connection has when all is well: see peers.path_of."""
        return "host" if self.is_brokered else "own"

    def call(self, probe: Any, *more: object) -> Any:
        """Run a probe in the client's container against the greeting server."""
        return self.client.call(probe, self.address, self.port, *more)

    def call_at(self, port: int, probe: Any, *more: object) -> Any:
        """As call, against another port of the server's."""
        return self.client.call(probe, self.address, port, *more)

    def serve(self, probe: Any, port: int, *more: object) -> Forked:
        """Start a probe in the server's container, on a port of all its addresses."""
        return self.server.probe(probe, self.anywhere, port, *more)

    def check_addresses(self, greeting: dict[str, Any], path: Path | None = None) -> None:
        """Both ends must say the same of both addresses, and the path be this contender's."""
        assert greeting["peer"] == greeting["accepted"] == greeting["client_name"]
        there = peers.endpoint((self.address, self.port))
        assert greeting["name"] == greeting["client_peer"] == there
        assert self.client.address4 in greeting["peer"] or self.client.address6 in greeting["peer"]
        assert greeting["path"] == (path or self.path)

    def mask(self, shown: Any) -> Any:
        """What a probe reported, with the words `client` and `server` for the addresses."""
        if isinstance(shown, dict):
            return {key: self.mask(value) for key, value in shown.items()}
        if isinstance(shown, list):
            return [self.mask(each) for each in shown]
        if isinstance(shown, str):
            for workload, word in ((self.client, "client"), (self.server, "server")):
                for address in (workload.address4, workload.address6):
                    # 10.77.1.2 is the beginning of 10.77.1.20, too.
                    shown = re.sub(rf"{re.escape(address)}(?![\da-f])", word, shown)
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """The native pair as the oracle of the brokered one."""

    native: Pair
    brokered: Pair

    def same(
        self,
        scenario: Callable[[Pair], Any],
        *,
        path: Path = "host",
        but: tuple[str, str] | None = None,
    ) -> Any:
        """Play it with both pairs: what they show must be equal. Gives what the native one showed.

        Where a probe says whose socket it had (peers.path_of), that must be the program's own
        natively, and the host's under Slim, or what `path` says. `but`: the one line that differs,
        natively and under Slim.
        """
        # At once: most cases wait for something.
        with ThreadPoolExecutor(2) as pool:
            expected = pool.submit(self._play, self.native, scenario, "own")
            brokered = pool.submit(self._play, self.brokered, scenario, path)
        native, found = expected.result(), brokered.result()
        wanted = list(native) if but is not None else native
        if but is not None:
            wanted[wanted.index(but[0])] = but[1]
        assert found == wanted, f"natively\n{pformat(native)}\nbrokered\n{pformat(found)}"
        return native

    def _play(self, pair: Pair, scenario: Callable[[Pair], Any], path: Path) -> Any:
        paths: list[str] = []
        shown = _without_paths(pair.mask(scenario(pair)), paths)
        assert {*paths} <= {path}, f"{pair.client.name}: {paths}: {shown}"
        return shown


def _without_paths(shown: Any, paths: list[str]) -> Any:
    """Takes out what probes say of the path: `"path": ...` in Python, `path: ...` in C."""
    if isinstance(shown, dict):
        paths.extend(value for key, value in shown.items() if key == "path")
        return {key: _without_paths(value, paths) for key, value in shown.items() if key != "path"}
    if isinstance(shown, list):
        said = [line for line in shown if isinstance(line, str) and line.startswith("path: ")]
        paths.extend(line.removeprefix("path: ") for line in said)
        return [_without_paths(each, paths) for each in shown if each not in said]
    return shown
