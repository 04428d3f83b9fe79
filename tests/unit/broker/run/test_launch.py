"""Users and errors of exec; the exec itself is in tests/kernel/test_slim_run.py."""

from __future__ import annotations

import os
import pwd

import pytest

from slim.broker.errors import SlimError
from slim.broker.run import launch


def test_an_account_is_found_by_name_and_by_number() -> None:
    entry = pwd.getpwall()[0]
    for user in (entry.pw_name, str(entry.pw_uid)):
        account = launch.Account(user)
        assert (account.name, account.uid, account.gid) == entry[0:1] + entry[2:4]
        assert entry.pw_gid in account.groups


@pytest.mark.parametrize("user", ["no-such-user-here", "4294967000", "9" * 30])
def test_an_unknown_user_is_an_error(user: str) -> None:
    with pytest.raises(SlimError, match="no user"):
        launch.Account(user)


def test_the_environment_is_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SLIM_TEST_VALUE", "x=y")
    environment = launch._environment()
    assert environment[b"SLIM_TEST_VALUE"] == b"x=y"
    assert (b"LC_CTYPE" in environment) == (b"\0LC_CTYPE=" in b"\0" + given_environment())


def given_environment() -> bytes:
    with open("/proc/self/environ", "rb") as environ:
        return environ.read()
