"""Events made up for tests, one of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.broker import events

if TYPE_CHECKING:
    from slim.broker.events import Event


def opened(**changed: object) -> events.ConnectionOpened:
    values: dict[str, object] = {
        "time": 1000.5,
        "direction": "out",
        "workload": "web",
        "pid": 4711,
        "overlay_local": "10.1.0.2:40000",
        "overlay_peer": "10.1.1.2:80",
        "host_peer": "192.0.2.2:20001",
        "peer_host": "b",
        "path": "fast",
        "reason": "",
        "verdict": "allow",
        "rule": "rules:web",
        "cookie": 7,
        "setup_us": 180,
    }
    return events.ConnectionOpened(**{**values, **changed})  # type: ignore[arg-type]


def closed(**changed: object) -> events.ConnectionClosed:
    made = opened()
    own = {f: getattr(made, f) for f in events.ConnectionEvent.__struct_fields__}
    return events.ConnectionClosed(**{**own, "duration_s": 2.5, **changed})


ONE_OF_EACH: list[Event] = [
    opened(),
    closed(),
    events.ConnectionsCut(time=1001.0, why="policy", rule="rules:no", count=3),
    events.ListenerUp(
        time=1002.0,
        workload="web",
        overlay_local="0.0.0.0:80",
        host_local="192.0.2.1:20000",
        cookie=9,
    ),
    events.ListenerGone(
        time=1003.0,
        workload="web",
        overlay_local="0.0.0.0:80",
        host_local="192.0.2.1:20000",
        cookie=9,
    ),
    events.ContainerStarted(
        time=1004.0, workload="web", container="c0ffee", pid=12, is_bystander=False
    ),
    events.ContainerEnded(time=1005.0, workload="web", container="c0ffee"),
    events.PeerConnected(time=1006.0, peer_host="b"),
    events.PeerDisconnected(time=1007.0, peer_host="b", reason="closed by the peer"),
    events.PeerFailed(time=1008.0, endpoint="192.0.2.3:7946", reason="Connection refused"),
    events.PathFailed(time=1009.0, host_peer="192.0.2.2:20001", reason="timed out"),
    events.SourceDenied(
        time=1010.0,
        workload="db",
        overlay_local="10.1.0.3:5432",
        peer_host="b",
        source_workload="shop/web",
        source_address="10.1.1.9",
        rule="rules:no",
    ),
    events.WouldDeny(time=1011.0, flow="shop/web to 10.1.0.3:5432", rule="rules:no"),
    events.PolicyChanged(time=1012.0, epoch=4),
    events.ConfigRefused(time=1013.0, mistakes=2, reason="unknown key"),
    events.TrapsConnected(time=1014.0, pid=77),
    events.PluginFailed(time=1015.0, plugin="mine", hook="slim_decide", reason="KeyError: 'x'"),
    events.EventsLost(time=1016.0, count=5),
]
