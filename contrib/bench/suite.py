"""All scenarios, in the order of the report."""

from bench import bulk, crr, memcached, nginx, postgres, redis, rr

SCENARIOS = tuple(module.SCENARIO for module in (bulk, rr, crr, nginx, memcached, redis, postgres))
