"""slimd's table of connections on this side of the admin socket, kept up to date by its changes.

Counterpart: watching.py. Rates are what went between two looks of slimd's, by its own clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from slim.broker.admin import messages

if TYPE_CHECKING:
    from slim.broker.admin.messages import Changes, Connection, Traffic


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second."""

    send: float = 0.0
    receive: float = 0.0


STILL = Rates()


@dataclass(slots=True)
class Mirror:
    """The whole table; `update` with each answer to `request()`."""

    rows: dict[int, Connection] = field(default_factory=dict)
    """By cookie; `age_s` and figures are of the time that a row came: see `whole`."""
    traffic: dict[int, Traffic] = field(default_factory=dict)
    rates: dict[int, Rates] = field(default_factory=dict)
    """Of connections that sent or received anything between the last two looks."""
    generation: int = 0
    at: float = 0.0

    def request(self) -> messages.GetChanges:
        return messages.GetChanges(self.generation)

    def update(self, changes: Changes) -> list[Connection]:
        """Take an answer; gives the rows that went."""
        if changes.is_whole:
            came = {row.cookie for row in changes.rows}
            gone = [cookie for cookie in self.rows if cookie not in came]
        else:
            gone = changes.gone
        went = [row for cookie in gone if (row := self.rows.pop(cookie, None)) is not None]
        for cookie in gone:
            self.traffic.pop(cookie, None)
            self.rates.pop(cookie, None)
        for row in changes.rows:
            self.rows[row.cookie] = row
        elapsed_s = changes.at - self.at
        if elapsed_s > 0:
            # Of the same look nothing new can be told; else what does not move stands still.
            self.rates = {}
        for traffic in changes.traffic:
            before = self.traffic.get(traffic.cookie)
            self.traffic[traffic.cookie] = traffic
            if before is not None and elapsed_s > 0:
                self.rates[traffic.cookie] = Rates(
                    max(0, traffic.bytes_acked - before.bytes_acked) / elapsed_s,
                    max(0, traffic.bytes_received - before.bytes_received) / elapsed_s,
                )
        self.generation, self.at = changes.generation, changes.at
        return went

    def whole(self, cookie: int, now: float | None = None) -> Connection:
        """One row with its age and figures of now (time.time())."""
        row, traffic = self.rows[cookie], self.traffic.get(cookie)
        age_s = max(0.0, (time.time() if now is None else now) - row.since)
        if traffic is None:
            return msgspec.structs.replace(row, age_s=age_s)
        return msgspec.structs.replace(
            row,
            age_s=age_s,
            rtt_ms=traffic.rtt_us / 1000,
            retransmits=traffic.retransmits,
            bytes_acked=traffic.bytes_acked,
            bytes_received=traffic.bytes_received,
            delivery_rate=traffic.delivery_rate,
        )
