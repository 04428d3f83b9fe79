"""Redis: gets over 16 connections, one at a time each; load: redis-benchmark."""

from lab.places import Contender
from lab.programs import Redis

from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="Redis, GET",
    program=Redis(),
    placement=Placement.ONE_CORE,
    bars=(Bar(against=Contender.HOST, at_least=0.95),),
)
