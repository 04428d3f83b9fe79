"""Loading, blocking and calling plugins, and what happens when they fail."""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import logging
import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest

from slim.broker import plugin_manager
from slim.broker.decisions import DEFAULT_VERDICT, Direction, FlowRequest, Identity, Verdict
from slim.broker.endpoints import Endpoint, parse_address
from slim.broker.errors import ConfigError, PluginError
from slim.broker.plugin_loading import BUILTIN_PLUGINS, hook_names
from slim.broker.plugin_manager import Plugins
from slim.broker.plugin_settings import PluginSettings
from slim.broker.shaping import Shaping
from slim.broker.shaping_rules import Selector, ShapingRule, ShapingRules
from support.happenings import opened
from support.lending import LoopbackContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from slim.broker.discovery import DiscoveryBackend, Located

WritePlugin: TypeAlias = "Callable[..., str]"
"""Writes a module: its body and, if it matters, its name; gives the name."""

BUILTIN_NAMES = sorted(module.rpartition(".")[2] for module in BUILTIN_PLUGINS)
WORKLOAD = Identity("web", "shop", {})
REQUEST = FlowRequest(
    direction=Direction.EGRESS,
    source=WORKLOAD,
    source_address=parse_address("10.77.1.5"),
    destination=None,
    destination_address=parse_address("10.77.2.7"),
    port=80,
)
numbers = itertools.count()


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritePlugin]:
    """Writes a plugin module and gives its name; gone from sys.modules after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(body: str, name: str | None = None) -> str:
        name = name or f"plugin_{next(numbers)}"
        header = "from slim.broker.plugin_api import *\n"
        (tmp_path / f"{name}.py").write_text(header + textwrap.dedent(body))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def load(
    *modules: str, block: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Plugins:
    return Plugins(load=modules, block=block, entry_points=False, environ=environ or {})


def loaded_names(plugins: Plugins) -> list[str]:
    return [name for name, _, _ in plugins.describe()]


def settings(**tables: dict[str, object]) -> PluginSettings:
    return PluginSettings("a", "slimd.toml", tables)


# --- loading


def test_the_built_in_plugins_are_loaded_with_our_version() -> None:
    described = load().describe()
    assert [name for name, _, _ in described] == BUILTIN_NAMES
    assert {version for _, version, _ in described} == {importlib.metadata.version("slim-broker")}
    hooks = {name: hooks for name, _, hooks in described}
    assert hooks["rules"] == ["slim_configure", "slim_decide", "slim_isolates"]
    assert hooks["aesgcm"] == ["slim_encryption_backends"]


def test_every_hook_is_used_by_a_built_in_plugin() -> None:
    used = {hook for _, _, hooks in load().describe() for hook in hooks}
    assert used == set(hook_names())


def test_a_module_of_the_configuration_is_loaded_by_its_last_name(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    (tmp_path / "package").mkdir()
    write_plugin("__version__ = '7'\n@hookimpl\ndef slim_decide(): pass", "package/mine")
    plugins = load("package.mine")
    assert ("mine", "7", ["slim_decide"]) in plugins.describe()
    for name in ("package.mine", "package"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("block", "environ"),
    [
        (["rules", "static"], {}),
        ([], {"SLIM_BLOCKED_PLUGINS": "rules,static"}),
        (["rules"], {"SLIM_BLOCKED_PLUGINS": " static , "}),
    ],
)
def test_blocked_plugins_are_not_loaded(
    block: Sequence[str], environ: Mapping[str, str] | None
) -> None:
    names = loaded_names(load(block=block, environ=environ))
    assert names == [name for name in BUILTIN_NAMES if name not in ("rules", "static")]


def test_a_blocked_module_is_not_even_imported(write_plugin: WritePlugin) -> None:
    name = write_plugin("raise RuntimeError('imported')")
    assert name not in loaded_names(load(name, block=[name]))


def test_blocking_what_does_not_exist_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    load(block=["ruls", "static"])
    assert [record.message for record in caplog.records] == ["blocked plugin 'ruls' does not exist"]


def test_a_class_named_plugin_is_made_into_the_plugin(write_plugin: WritePlugin) -> None:
    name = write_plugin(
        """
        class Plugin:
            def __init__(self):
                self.rule = "made"
            @hookimpl
            def slim_decide(self, request):
                return Verdict(False, self.rule)
        """
    )
    assert load(name).decide(REQUEST) == Verdict(False, "made")


def fake_entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    entries = [importlib.metadata.EntryPoint(n, v, "slim") for n, v in values.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: tuple(entries))


def test_installed_plugins_are_loaded_unless_told_not_to(
    write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_plugin("@hookimpl\ndef slim_decide(): return Verdict(False, 'installed')")
    fake_entry_points(monkeypatch, mine=module)
    plugins = Plugins(environ={})
    assert "mine" in loaded_names(plugins)
    assert plugins.decide(REQUEST) == Verdict(False, "installed")
    assert "mine" not in loaded_names(Plugins(entry_points=False, environ={}))
    assert "mine" not in loaded_names(Plugins(block=["mine"], environ={}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", "could not be loaded: RuntimeError: no luck"),
        ("import nothing_like_it", "could not be loaded: ModuleNotFoundError: No module named"),
        ("x = (", "could not be loaded: SyntaxError"),
        (
            "class Plugin:\n    def __init__(self, x): pass",
            "could not be loaded: TypeError: Plugin.__init__() missing",
        ),
        ("def slim_decide(request): pass", "has no hooks"),
        ("@hookimpl\ndef slim_decide(reqest): pass", "could not be loaded: PluginValidationError"),
        (
            "@hookimpl\ndef slim_decides(request): pass",
            "has a hook slim_decides, which does not exist",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_a_remedy(
    write_plugin: WritePlugin, body: str, message: str
) -> None:
    name = write_plugin(body)
    with pytest.raises(PluginError) as caught:
        load(name)
    assert str(caught.value).startswith(f"plugin {name!r}")
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_misspelt_hook_is_answered_with_the_nearest_one(write_plugin: WritePlugin) -> None:
    with pytest.raises(PluginError) as caught:
        load(write_plugin("@hookimpl\ndef slim_decides(request): pass"))
    assert caught.value.hint == "did you mean slim_decide?"


def test_a_broken_installed_plugin_is_named_and_can_be_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_entry_points(monkeypatch, broken="no_such_module")
    with pytest.raises(PluginError, match="plugin 'broken'") as caught:
        Plugins(environ={})
    assert "SLIM_BLOCKED_PLUGINS=broken" in caught.value.hint
    Plugins(environ={"SLIM_BLOCKED_PLUGINS": "broken"})


def test_no_plugin_takes_the_place_of_a_built_in_one(
    write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_plugin("@hookimpl\ndef slim_decide(): pass", "rules")
    with pytest.raises(PluginError, match="the name is taken"):
        load(module)
    # With the built-in one out of the way the name is blocked, not free.
    assert "rules" not in loaded_names(load(module, block=["rules"]))


# --- configure


def test_settings_reach_the_plugins(write_plugin: WritePlugin) -> None:
    name = write_plugin(
        """
        seen = []
        @hookimpl
        def slim_configure(settings):
            seen.append((settings.host, settings.table(__name__)))
        """
    )
    load(name).configure(PluginSettings("a", "slimd.toml", {name: {"x": 1}}))
    assert sys.modules[name].seen == [("a", {"x": 1})]


def test_a_table_of_no_plugin_is_a_mistake_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load().configure(settings(ruls={}))
    assert str(caught.value) == "slimd.toml: [plugins.ruls]: there is no plugin 'ruls'"
    assert caught.value.hint == "did you mean 'rules'?"
    with pytest.raises(ConfigError) as caught:
        load().configure(settings(zzz={}))
    assert caught.value.hint == f"there are: {', '.join(BUILTIN_NAMES)}"


def test_the_table_of_a_blocked_plugin_is_no_mistake() -> None:
    load(block=["rules"]).configure(settings(rules={"default": "deny"}))


def test_a_plugins_own_mistake_is_shown_as_it_is(write_plugin: WritePlugin) -> None:
    name = write_plugin(
        "@hookimpl\ndef slim_configure(settings): raise settings.mistake('x', 'is odd')"
    )
    with pytest.raises(ConfigError, match=r"slimd.toml: \[plugins.x\]: is odd"):
        load(name).configure(settings())


def test_any_other_failure_to_configure_names_the_plugin(write_plugin: WritePlugin) -> None:
    name = write_plugin("@hookimpl\ndef slim_configure(settings): 1 / 0")
    with pytest.raises(PluginError) as caught:
        load(name).configure(settings())
    assert str(caught.value) == (
        f"plugin {name!r}: slim_configure failed: ZeroDivisionError: division by zero"
    )
    assert f"SLIM_BLOCKED_PLUGINS={name}" in caught.value.hint
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# --- decide and isolates

ALLOW = "@hookimpl\ndef slim_decide(request): return Verdict(True, 'a')"
DENY = "@hookimpl\ndef slim_decide(request): return Verdict(False, 'd')"
NO_OPINION = "@hookimpl\ndef slim_decide(request): return None"
RAISES = "@hookimpl\ndef slim_decide(request): raise KeyError('x')"


def test_without_an_opinion_the_default_is_allow(write_plugin: WritePlugin) -> None:
    assert load(write_plugin(NO_OPINION)).decide(REQUEST) == DEFAULT_VERDICT


@pytest.mark.parametrize("order", [*itertools.permutations([ALLOW, DENY, NO_OPINION])])
def test_the_strictest_verdict_wins_in_any_order_of_loading(
    write_plugin: WritePlugin, order: tuple[str, ...]
) -> None:
    plugins = load(*[write_plugin(body) for body in order])
    assert plugins.decide(REQUEST) == Verdict(False, "d")


@pytest.mark.parametrize("allow_first", [True, False])
def test_a_plugin_that_raises_denies_and_is_named(
    write_plugin: WritePlugin, allow_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken, allows = write_plugin(RAISES), write_plugin(ALLOW)
    plugins = load(*([allows, broken] if allow_first else [broken, allows]))
    verdict = plugins.decide(REQUEST)
    assert verdict == Verdict(False, f"{broken}: slim_decide raised KeyError")
    assert plugins.errors == {broken: 1}


def test_a_broken_plugins_traceback_is_logged_once(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = load(write_plugin(RAISES))
    for _ in range(3):
        plugins.decide(REQUEST)
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]


@pytest.mark.parametrize(
    "result", ["True", "'allow'", "Verdict('yes', 'r')", "Verdict(True, None)", "[]", "0"]
)
def test_a_result_that_is_no_verdict_denies(write_plugin: WritePlugin, result: str) -> None:
    name = write_plugin(f"@hookimpl\ndef slim_decide(request): return {result}")
    verdict = load(name).decide(REQUEST)
    assert not verdict.allow
    assert verdict.rule.startswith(f"{name}: slim_decide returned")


LIMITED = "@hookimpl\ndef slim_decide(request): return Verdict(True, 'l', shaping={})"
SLOW_RULES = ShapingRules((ShapingRule("slow", Selector(), Shaping(send=1_000)),))


def test_limits_of_plugins_and_of_the_configuration_are_combined(
    write_plugin: WritePlugin,
) -> None:
    name = write_plugin(LIMITED.format("Shaping(send=9_000, quota=5)"))
    plugins = Plugins(load=[name], entry_points=False, environ={}, shaping=SLOW_RULES)
    assert plugins.decide(REQUEST) == Verdict(True, "l", shaping=Shaping(send=1_000, quota=5))
    assert load(name).decide(REQUEST) == Verdict(True, "l", shaping=Shaping(send=9_000, quota=5))


def test_the_configuration_limits_what_no_plugin_has_an_opinion_of() -> None:
    plugins = Plugins(entry_points=False, environ={}, shaping=SLOW_RULES)
    assert plugins.decide(REQUEST) == replace(DEFAULT_VERDICT, shaping=Shaping(send=1_000))


@pytest.mark.parametrize("limits", ["Shaping(send=0)", "Shaping(dscp=64)", "'200mbit'", "{}"])
def test_limits_that_make_no_sense_are_a_deny(write_plugin: WritePlugin, limits: str) -> None:
    name = write_plugin(LIMITED.format(limits))
    verdict = load(name).decide(REQUEST)
    assert not verdict.allow
    assert verdict.rule.startswith(f"{name}: shaping: ")


def test_a_demand_for_encryption_is_a_deny_where_nothing_encrypts(
    write_plugin: WritePlugin,
) -> None:
    name = write_plugin(
        "@hookimpl\ndef slim_decide(request): return Verdict(True, 'x:secret', encrypt=True)"
    )
    verdict = load(name, write_plugin(ALLOW)).decide(REQUEST)
    assert verdict == Verdict(False, "x:secret; nothing encrypts the traffic")


def test_which_workloads_may_be_limited(write_plugin: WritePlugin) -> None:
    assert not load().may_shape(WORKLOAD)
    assert Plugins(entry_points=False, environ={}, shaping=SLOW_RULES).may_shape(WORKLOAD)
    # Nobody knows what a plugin that is not our own will say.
    assert load(write_plugin(NO_OPINION)).may_shape(WORKLOAD)


def test_a_long_name_does_not_lengthen_the_rule(write_plugin: WritePlugin) -> None:
    name = write_plugin(RAISES, "p" * 100)
    assert len(load(name).decide(REQUEST).rule) == 80


@pytest.mark.parametrize(
    ("bodies", "isolated"),
    [
        ([], False),
        (["return None"], False),
        (["return False"], False),
        (["return True"], True),
        (["return False", "return True"], True),
        (["return True", "return False"], True),
        (["raise KeyError"], True),
        (["raise KeyError", "return False"], True),
        (["return 'no'"], True),
        (["return 0"], True),
    ],
)
def test_any_plugin_isolates_and_so_does_a_broken_one(
    write_plugin: WritePlugin, bodies: list[str], isolated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hook = "@hookimpl\ndef slim_isolates(workload, direction): "
    plugins = load(*[write_plugin(hook + body) for body in bodies])
    assert plugins.isolates(WORKLOAD, Direction.INGRESS) is isolated


def test_a_plugin_may_leave_arguments_out(write_plugin: WritePlugin) -> None:
    name = write_plugin("@hookimpl\ndef slim_isolates(direction): return direction == 'ingress'")
    plugins = load(name)
    assert plugins.isolates(WORKLOAD, Direction.INGRESS)
    assert not plugins.isolates(WORKLOAD, Direction.EGRESS)


# --- discovery backends

BACKEND = """
class Backend:
    def __init__(self, name):
        self.name = name
        self.calls = []
    async def locate(self, workload, destination):
        self.calls.append((workload, destination))
        return answer()
    def workload_added(self, workload, addresses):
        self.calls.append(("added", workload, addresses))
    def workload_removed(self, workload):
        self.calls.append(("removed", workload))
    def close(self):
        self.calls.append("closed")
made = []
@hookimpl
def slim_discovery_backends(context):
    made.append(Backend("demo"))
    return made[:1]
def answer():
    return Located("b", Endpoint.parse("1.2.3.4:5"), 9.0)
"""
CONTROL = Endpoint.parse("1.2.3.4:5")


def backends_of(name: str) -> dict[str, DiscoveryBackend]:
    return load(name, block=BUILTIN_NAMES).discovery_backends(LoopbackContext())


def locate(backend: DiscoveryBackend) -> Located | None:
    return asyncio.run(backend.locate(3, REQUEST.destination_address))


def test_backends_are_given_by_name_and_called_through(write_plugin: WritePlugin) -> None:
    name = write_plugin(BACKEND)
    backend = backends_of(name)["demo"]
    located = locate(backend)
    backend.workload_added(3, ())
    backend.workload_removed(3)
    backend.close()
    assert located is not None
    assert (located.host, located.control, located.lifetime_s) == ("b", CONTROL, 9.0)
    assert sys.modules[name].made[0].calls == [
        (3, REQUEST.destination_address),
        ("added", 3, ()),
        ("removed", 3),
        "closed",
    ]


def test_the_built_in_backends_are_there() -> None:
    names = {"neighbours", "static", "rendezvous"}
    assert set(load().discovery_backends(LoopbackContext())) == names


@pytest.mark.parametrize(
    "answer", ["1 / 0", "'b'", "Located(None, None, 0)", "Located(None, None, float('nan'))"]
)
def test_a_backend_that_fails_has_no_opinion(
    write_plugin: WritePlugin, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = write_plugin(BACKEND + f"def answer(): return {answer}")
    assert locate(backends_of(name)["demo"]) is None
    assert "discovery 'demo': locating 10.77.2.7" in caplog.text


def test_a_backend_may_have_no_opinion(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    name = write_plugin(BACKEND + "def answer(): return None")
    assert locate(backends_of(name)["demo"]) is None
    assert not caplog.records


def test_a_backend_that_cannot_close_does_not_stop_slimd(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    name = write_plugin(
        BACKEND + "def fail(*arguments): raise OSError('no')\n"
        "Backend.close = Backend.workload_added = Backend.workload_removed = fail"
    )
    backend = backends_of(name)["demo"]
    backend.workload_added(3, ())
    backend.workload_removed(3)
    backend.close()
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]


def test_giving_up_a_location_reaches_the_backend(write_plugin: WritePlugin) -> None:
    name = write_plugin(
        BACKEND
        + """
import asyncio
async def wait(self, workload, destination):
    try:
        await asyncio.Event().wait()
    finally:
        self.calls.append("cancelled")
Backend.locate = wait
"""
    )
    backend = backends_of(name)["demo"]

    async def give_up() -> None:
        await asyncio.wait_for(backend.locate(3, REQUEST.destination_address), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert sys.modules[name].made[0].calls == ["cancelled"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("'demo'", "returned 'demo', which is no list of backends"),
        ("[object()]", "which is no list of backends"),
        ("[Backend(5)]", "which is no list of backends"),
        ("1 / 0", "slim_discovery_backends failed: ZeroDivisionError"),
    ],
)
def test_what_is_no_backend_stops_the_start_and_names_the_plugin(
    write_plugin: WritePlugin, result: str, message: str
) -> None:
    name = write_plugin(
        BACKEND + f"@hookimpl\ndef slim_discovery_backends(context): return {result}"
    )
    with pytest.raises(PluginError, match=f"plugin '{name}'") as caught:
        backends_of(name)
    assert message in str(caught.value)


def test_two_backends_of_one_name_stop_the_start(write_plugin: WritePlugin) -> None:
    first, second = write_plugin(BACKEND), write_plugin(BACKEND)
    with pytest.raises(PluginError, match="both have a backend 'demo'"):
        load(first, second).discovery_backends(LoopbackContext())


# --- encryption backends

ENCRYPTION = """
from slim.plugins.encryption.aesgcm_cipher import seal, open
@hookimpl
def slim_encryption_backends(): return [EncryptionBackend("demo", __name__)]
"""


def test_encryptions_are_given_by_name(write_plugin: WritePlugin) -> None:
    name = write_plugin(ENCRYPTION)
    found = load(name).encryption_backends()
    assert {key: backend.module for key, backend in found.items()} == {
        "aesgcm": "slim.plugins.encryption.aesgcm_cipher",
        "demo": name,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "def seal(k, n, p, a): return p + bytes(16)\ndef open(k, n, s, a): return s[:-16]",
            "what was changed opens too",
        ),
        ("def seal(k, n, p, a): return p", "what was sealed does not open again"),
        ("def open(k, n, s, a): return b''", "what was sealed does not open again"),
        ("def seal(k, n, p, a): return p + bytes(16)", "the record does not open"),
        (
            # Ignores the associated data.
            "inner = open\ndef open(k, n, s, a): return inner(k, n, s, b'associated')",
            "what was changed opens too",
        ),
        ("del seal", "AttributeError"),
        (
            "def slim_encryption_backends(): "
            "return [EncryptionBackend('demo', 'no_such_module')]\n"
            "slim_encryption_backends = hookimpl(slim_encryption_backends)",
            "ModuleNotFoundError",
        ),
    ],
)
def test_a_cipher_that_does_not_protect_stops_the_start(
    write_plugin: WritePlugin, change: str, message: str
) -> None:
    name = write_plugin(ENCRYPTION + change)
    with pytest.raises(PluginError, match=f"plugin '{name}'") as caught:
        load(name).encryption_backends()
    assert message in str(caught.value)
    assert caught.value.hint


# --- tracing


def test_tracing_logs_each_call_and_its_results(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    name = write_plugin(DENY)
    plugins = load(name, block=BUILTIN_NAMES)
    with caplog.at_level(logging.DEBUG, plugin_manager.__name__):
        plugins.decide(REQUEST)
        assert not caplog.records
        plugins.trace()
        plugins.decide(REQUEST)
    before, after = [record.message for record in caplog.records]
    assert before.startswith("slim_decide({'request': FlowRequest(")
    assert before.endswith(f"to {name}")
    assert after.startswith("slim_decide -> [Verdict(allow=False, rule='d', audit=False, ")


def test_tracing_shows_what_a_plugin_raised(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = load(write_plugin(RAISES), block=BUILTIN_NAMES)
    with caplog.at_level(logging.DEBUG, plugin_manager.__name__):
        plugins.trace()
        assert not plugins.decide(REQUEST).allow
    assert "slim_decide -> 'x'" in caplog.text


# --- observation and the end


def test_every_observer_hears_of_an_event(write_plugin: WritePlugin) -> None:
    body = "heard = []\n@hookimpl\ndef slim_observe(event): heard.append(event)"
    names = [write_plugin(body), write_plugin(body)]
    plugins = load(*names)
    plugins.observe(opened())
    assert [sys.modules[name].heard for name in names] == [[opened()], [opened()]]
    assert [plugins.costs[name, "slim_observe"].calls for name in names] == [1, 1]


def test_what_hooks_cost_is_kept_by_plugin(write_plugin: WritePlugin) -> None:
    slow = write_plugin("import time\n@hookimpl\ndef slim_decide(request): time.sleep(0.02)")
    bad = write_plugin(RAISES)
    plugins = load(slow, bad, block=BUILTIN_NAMES)
    for _ in range(3):
        plugins.decide(REQUEST)
    assert {*plugins.costs} == {(slow, "slim_decide"), (bad, "slim_decide")}
    cost = plugins.costs[slow, "slim_decide"]
    assert (cost.calls, cost.errors) == (3, 0)
    assert cost.seconds >= 3 * 0.02
    assert 0.02 <= cost.slowest_s <= cost.seconds
    failed = plugins.costs[bad, "slim_decide"]
    assert (failed.calls, failed.errors) == (3, 3)


def test_an_observer_that_fails_is_muted_and_keeps_nobody_else_from_hearing(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write_plugin("calls = []\n@hookimpl\ndef slim_observe(event): calls.append(1 / 0)")
    good = write_plugin("heard = []\n@hookimpl\ndef slim_observe(event): heard.append(event)")
    plugins = load(bad, good)
    failures: list[tuple[str, str, str]] = []
    plugins.on_failed = lambda *told: failures.append(told)
    for _ in range(plugin_manager.MUTE_AFTER + 5):
        plugins.observe(opened())
    assert len(sys.modules[good].heard) == plugin_manager.MUTE_AFTER + 5
    assert plugins.errors[bad] == plugin_manager.MUTE_AFTER
    assert failures[0] == (bad, "slim_observe", "ZeroDivisionError: division by zero")
    assert f"plugin {bad!r} hears of no event any more" in caplog.text


def test_an_observer_that_is_slow_is_muted(
    write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_manager, "SLOW_OBSERVER_S", -1.0)
    name = write_plugin("heard = []\n@hookimpl\ndef slim_observe(event): heard.append(event)")
    plugins = load(name, block=["jsonlines"])
    for _ in range(plugin_manager.MUTE_AFTER + 5):
        plugins.observe(opened())
    assert len(sys.modules[name].heard) == plugin_manager.MUTE_AFTER
    assert not plugins.has_observers


def test_failures_with_a_success_between_them_do_not_mute(write_plugin: WritePlugin) -> None:
    name = write_plugin(
        """
        calls = []
        @hookimpl
        def slim_observe(event):
            calls.append(event)
            if len(calls) % 2:
                raise ValueError
        """
    )
    plugins = load(name)
    for _ in range(4 * plugin_manager.MUTE_AFTER):
        plugins.observe(opened())
    assert len(sys.modules[name].calls) == 4 * plugin_manager.MUTE_AFTER


def test_stopping_tells_every_plugin_and_waits_for_none(write_plugin: WritePlugin) -> None:
    bad = write_plugin("@hookimpl\ndef slim_stop(): raise ValueError('no')")
    good = write_plugin("ends = []\n@hookimpl\ndef slim_stop(): ends.append(1)")
    slow = write_plugin(
        "import threading\ngo = threading.Event()\n@hookimpl\ndef slim_stop(): go.wait(30)"
    )
    stopping = load(slow, good, bad).stop()
    sys.modules[slow].go.set()
    stopping.join(5)
    assert sys.modules[good].ends == [1]
