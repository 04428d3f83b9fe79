"""Connect, one byte each way, close: what setting a connection up costs. Reported, no bar."""

from bench.echo import Echo
from bench.scenario import Placement, Scenario

SCENARIO = Scenario(
    title="connect + 1 byte + close",
    program=Echo("crr", "crr", "connections/s"),
    placement=Placement.ONE_CORE,
    proof=Echo("crr", "echo", "round trips/s"),
)
