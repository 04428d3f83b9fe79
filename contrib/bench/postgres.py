"""PostgreSQL: prepared single-row selects over 4 connections; load: pgbench."""

from lab.places import Contender
from lab.programs import Postgres

from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="PostgreSQL, select-only",
    program=Postgres(),
    placement=Placement.ONE_CORE,
    bars=(Bar(against=Contender.HOST, at_least=0.95),),
)
