"""Visiting network namespaces, in child processes: pytest itself never moves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]

PRELUDE = """
import json, os, socket, threading
from slim.broker.kernel import namespaces
from slim.broker.kernel.namespaces import in_namespace, netns_cookie, netns_cookie_of

def here():
    return os.stat("/proc/thread-self/ns/net").st_ino

def made_elsewhere():
    made = []
    def make():
        namespaces.unshare(namespaces.CLONE_NEWNET)
        made.append(namespaces.open_namespace("/proc/thread-self/ns/net"))
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]

home = here()
other = made_elsewhere()
"""


def said_by(code: str) -> Any:
    return json.loads(subprocess.check_output([sys.executable, "-c", PRELUDE + code], text=True))


def test_only_the_calling_thread_moves_and_it_comes_back() -> None:
    inside, elsewhere, after = said_by("""
seen = []
with in_namespace(other):
    inside = here() == os.fstat(other).st_ino
def visit():
    with in_namespace(other):
        seen.append((here() == os.fstat(other).st_ino, os.stat("/proc/self/ns/net").st_ino == home))
thread = threading.Thread(target=visit)
thread.start()
thread.join()
print(json.dumps([inside, seen[0], here() == home]))
""")
    assert inside is True
    assert elsewhere == [True, True]
    assert after is True


def test_an_exception_inside_does_not_leave_the_thread_there() -> None:
    assert said_by("""
try:
    with in_namespace(other):
        raise KeyError
except KeyError:
    pass
print(json.dumps(here() == home))
""")


def test_nested_visits_are_refused_and_leave_the_outer_one_in_place() -> None:
    assert said_by("""
with in_namespace(other):
    try:
        with in_namespace(other):
            pass
    except RuntimeError:
        still = here() == os.fstat(other).st_ino
with in_namespace(other):
    pass
print(json.dumps(still and here() == home))
""")


def test_what_is_no_network_namespace_is_refused_without_a_move() -> None:
    assert said_by("""
import errno
mount_namespace = namespaces.open_namespace("/proc/self/ns/mnt")
try:
    with in_namespace(mount_namespace):
        pass
except OSError as error:
    refused = error.errno == errno.EINVAL
with in_namespace(other):
    pass
print(json.dumps(refused and here() == home))
""")


def test_cookies_tell_namespaces_apart_and_stay_with_sockets() -> None:
    assert said_by("""
with in_namespace(other):
    away = socket.socket()
local = socket.socket()
print(json.dumps(
    netns_cookie(away) == netns_cookie_of(other) != netns_cookie(local) > 0
    and netns_cookie(local) == netns_cookie_of(namespaces.open_namespace("/proc/self/ns/net"))
))
""")
