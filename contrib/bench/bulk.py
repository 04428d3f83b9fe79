"""Bulk transfer: one TCP connection, one direction, as fast as it goes."""

from lab.places import Contender

from bench.echo import Echo
from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="bulk TCP",
    program=Echo("bulk", "stream", "Gbit/s"),
    placement=Placement.CORE_EACH,
    bars=(
        Bar(against=Contender.HOST, at_least=0.97),
        Bar(against=Contender.OVERLAY, at_least=1.3),
    ),
)
