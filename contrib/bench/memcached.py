"""memcached: nine gets to one set of 1 KiB over 16 connections; load: memcaslap."""

from lab.places import Contender
from lab.programs import Memcached

from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="memcached",
    program=Memcached(),
    placement=Placement.ONE_CORE,
    bars=(Bar(against=Contender.HOST, at_least=0.95),),
)
