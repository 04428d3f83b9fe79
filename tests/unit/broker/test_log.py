"""slimd's log: JSON lines that always parse, and text that stays on its line."""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from slim.broker import log as logs

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    root = logging.getLogger()
    asyncio_level = logging.getLogger("asyncio").level
    handlers, level = [*root.handlers], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)


def write(form: str, stream: io.StringIO, *arguments: object, **options: Any) -> str:
    logs.configure("info", form, stream)
    logging.getLogger("slim.test").warning(*arguments, **options)
    return stream.getvalue()


def parsed(*arguments: object, **options: Any) -> dict[str, Any]:
    (line,) = write("json", io.StringIO(), *arguments, **options).splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_json_line_has_time_level_logger_and_message() -> None:
    line = parsed("peer %s is %s", "b", "gone")
    moment = datetime.fromisoformat(line.pop("ts"))
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert line == {"level": "warning", "logger": "slim.test", "message": "peer b is gone"}


def test_extras_are_fields_whatever_their_type() -> None:
    line = parsed(
        "x",
        extra={"peer": "b", "tries": 3, "cookie": 2**64 - 1, "at": ipaddress.ip_address("::1")},
    )
    assert line["peer"] == "b"
    assert line["tries"] == 3
    assert line["cookie"] == 2**64 - 1
    assert line["at"] == "::1"


def test_an_extra_takes_no_fields_place() -> None:
    line = parsed("x", extra={"level": "debug", "ts": 0})
    assert line["level"] == "warning"
    assert line["ts"]


def test_an_exception_is_a_field_and_the_line_stays_one() -> None:
    try:
        raise OSError(2, "gone")
    except OSError:
        line = parsed("failed", exc_info=True)
    assert "gone" in line["exception"]
    assert line["exception"].startswith("Traceback")


@pytest.mark.parametrize("text", ['two\nlines "quoted"', "\x1b[31m", "\udcff\udc80", "größe"])
def test_any_text_is_one_line_of_json(text: str) -> None:
    line = parsed("%s", text, extra={"name_of": text})
    assert line["message"] == text
    assert line["name_of"] == text


def test_text_in_a_pipe_is_one_plain_line() -> None:
    text = write("human", io.StringIO(), "name is %s", "x\n2030-01-01 ERROR forged\x1b[2J")
    assert len(text.splitlines()) == 1
    assert "WARNING slim.test: name is x\\x0a2030-01-01 ERROR forged\\x1b[2J" in text


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("human", Terminal(), False),
        ("human", io.StringIO(), False),
        ("json", Terminal(), True),
    ],
)
def test_auto_is_for_people_only_on_a_terminal(
    form: str, stream: io.StringIO, is_json: bool
) -> None:
    text = write(form, stream, "peer [bold]b[/bold] at fd00:ab::1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert text.startswith("{") == is_json
    assert "[bold]b[/bold]" in text
    assert "fd00:ab::1" in text


def test_levels_below_are_left_out_and_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("warning", "json", first)
    logging.getLogger("slim.test").info("no")
    assert first.getvalue() == ""
    logs.configure("debug", "json", second)
    logging.getLogger("slim.test").debug("yes")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["level"] == "debug"


def test_rich_is_loaded_only_for_a_terminal() -> None:
    script = (
        "import sys; from slim.broker import log; log.configure('info', 'auto')\n"
        "import logging; logging.getLogger('x').info('y')\n"
        "sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr)["message"] == "y"
