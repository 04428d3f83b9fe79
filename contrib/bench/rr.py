"""Request and response of one byte over one connection: the latency of the network."""

from lab.places import Contender

from bench.echo import Echo
from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="1-byte request/response",
    program=Echo("rr", "echo", "round trips/s"),
    placement=Placement.ONE_CORE,
    bars=(
        Bar(against=Contender.HOST, at_least=0.97),
        Bar(against=Contender.OVERLAY, at_least=1.3),
    ),
)
