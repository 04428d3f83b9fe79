"""nginx: a page of 1 KiB over 16 connections that are kept alive; load: wrk."""

from lab.places import Contender
from lab.programs import Nginx

from bench.scenario import Bar, Placement, Scenario

SCENARIO = Scenario(
    title="nginx, keep-alive",
    program=Nginx(),
    placement=Placement.ONE_CORE,
    bars=(Bar(against=Contender.HOST, at_least=0.95),),
)
