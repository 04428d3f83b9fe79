"""slimd's table on the client's side: rows come and go, rates are of what moved."""

from __future__ import annotations

from slim.broker.admin.messages import Changes, GetChanges, Traffic
from slim.broker.admin.mirror import STILL, Mirror, Rates
from support.fake_admin import connection


def changes(generation: int, at: float, **changed: object) -> Changes:
    values: dict[str, object] = {"is_whole": False, "rows": [], "gone": [], "traffic": []}
    return Changes(generation=generation, at=at, **{**values, **changed})  # type: ignore[arg-type]


def test_the_first_question_is_for_everything_and_the_next_for_what_is_new() -> None:
    mirror = Mirror()
    assert mirror.request() == GetChanges(0)
    mirror.update(changes(41, 10.0, is_whole=True, rows=[connection(cookie=1)]))
    assert mirror.request() == GetChanges(41)


def test_rows_come_change_and_go() -> None:
    mirror = Mirror()
    first, second = connection(cookie=1), connection(cookie=2)
    mirror.update(changes(1, 10.0, is_whole=True, rows=[first, second]))
    went = mirror.update(changes(2, 11.0, rows=[connection(cookie=1, state="fin")], gone=[2, 99]))
    assert went == [second]
    assert {cookie: row.state for cookie, row in mirror.rows.items()} == {1: "fin"}


def test_a_whole_table_takes_the_place_of_what_was_known() -> None:
    mirror = Mirror()
    mirror.update(changes(1, 10.0, is_whole=True, rows=[connection(cookie=1)]))
    went = mirror.update(changes(900, 3.0, is_whole=True, rows=[connection(cookie=2)]))
    assert [row.cookie for row in went] == [1]
    assert [*mirror.rows] == [2]


def test_rates_are_what_moved_by_slimd_s_own_clock() -> None:
    mirror = Mirror()
    row = connection(cookie=1)
    mirror.update(
        changes(1, 10.0, is_whole=True, rows=[row], traffic=[Traffic(1, 100, 0, 5000, 100, 0)])
    )
    assert mirror.rates.get(1, STILL) == STILL
    mirror.update(changes(2, 12.0, traffic=[Traffic(1, 100, 0, 9000, 700, 0)]))
    assert mirror.rates[1] == Rates(2000.0, 300.0)


def test_what_does_not_move_stands_still_but_the_same_look_changes_nothing() -> None:
    mirror = Mirror()
    mirror.update(changes(1, 10.0, is_whole=True, traffic=[Traffic(1, 1, 0, 0, 0, 0)]))
    mirror.update(changes(2, 11.0, traffic=[Traffic(1, 1, 0, 10, 0, 0)]))
    mirror.update(changes(2, 11.0))
    assert mirror.rates[1] == Rates(10.0, 0.0)
    mirror.update(changes(3, 12.0))
    assert mirror.rates.get(1, STILL) == STILL


def test_a_row_in_whole_has_the_figures_and_the_age_of_now() -> None:
    mirror = Mirror()
    row = connection(cookie=1, since=1000.0, age_s=0.5)
    mirror.update(
        changes(1, 10.0, is_whole=True, rows=[row], traffic=[Traffic(1, 1250, 3, 7, 8, 9)])
    )
    found = mirror.whole(1, now=1060.0)
    assert (found.age_s, found.rtt_ms, found.retransmits) == (60.0, 1.25, 3)
    assert (found.bytes_acked, found.bytes_received, found.delivery_rate) == (7, 8, 9)
