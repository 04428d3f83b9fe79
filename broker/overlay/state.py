"""What this host has of its overlays, kept in one JSON file each: settings, peers, attachments.

The kernel's devices are the truth about what works; the file says what ought to be, and which
addresses are given out. Writers hold the directory's lock; readers need none, files are replaced.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from slim.broker.endpoints import Address, parse_address
from slim.broker.errors import ConfigError, ControlError, SlimError
from slim.broker.overlay.settings import OverlaySettings, Segment, check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_STATE_DIR = Path("/var/lib/slim")
LOCK_LIMIT_S = 10.0
_LOCK_POLL_S = 0.02
_MAX_FILE_BYTES = 1 << 24
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One container's device on the overlay. It is alive while the host has the device."""

    namespace: str
    """What the namespace was called when it was attached; for people only."""
    cookie: int
    """SO_NETNS_COOKIE of the namespace; means nothing once the device is gone."""
    device: str
    """The host's end."""
    interface: str
    """The container's end."""
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayState:
    """One overlay on this host."""

    settings: OverlaySettings
    peers: tuple[Address, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    last: tuple[Address, ...] = ()
    """Of each subnet the address that was picked last."""

    def taken(self) -> dict[Address, Attachment]:
        return {address: one for one in self.attachments for address in one.addresses}


class StateDirectory:
    """The directory with the files of all overlays of this host."""

    def __init__(self, path: Path = DEFAULT_STATE_DIR) -> None:
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """flock(2) on the directory: one change at a time, also among threads. Does not nest."""
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("use", self.path, error) from None
        try:
            _wait_for_lock(fd, self.path)
            yield
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """Of all overlays, sorted."""
        try:
            files = list(self.path.glob("overlay-*.json"))
        except OSError as error:
            raise _failed("list", self.path, error) from None
        return sorted(file.stem.removeprefix("overlay-") for file in files)

    def find(self, name: str) -> OverlayState | None:
        """None: there is no such overlay here. ConfigError: the file is none of ours."""
        check_name(name)
        path = self._file(name)
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", path, error) from None
        try:
            state = decode(data)
        except (ValueError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{path} is not the state of an overlay: {error}",
                hint="put a good copy back, or remove it with the overlay's devices",
            ) from None
        if state.settings.name != name:
            raise ConfigError(f"{path} is about overlay {state.settings.name!r}")
        return state

    def load(self, name: str) -> OverlayState:
        state = self.find(name)
        if state is None:
            known = ", ".join(self.names()) or "none"
            raise SlimError(
                f"there is no overlay {name!r} on this host",
                hint=f"slimctl overlay create makes one; there is: {known}",
            )
        return state

    def save(self, state: OverlayState) -> None:
        """Replace the file in one step, so that it is whole at all times."""
        path = self._file(state.settings.name)
        try:
            fd, temporary = tempfile.mkstemp(prefix=".overlay-", dir=self.path)
            try:
                with open(fd, "wb") as file:
                    file.write(encode(state))
                    os.fchmod(fd, 0o644)
                    file.flush()
                    os.fsync(fd)
                os.replace(temporary, path)  # noqa: PTH105 (both are plain names)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                raise
        except OSError as error:
            raise _failed("write", path, error) from None

    def remove(self, name: str) -> None:
        """A file that is gone already is no error."""
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise _failed("remove", self._file(name), error) from None

    def _file(self, name: str) -> Path:
        return self.path / f"overlay-{name}.json"


class _SegmentText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    network: str
    subnet: str


class _AttachmentText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    namespace: str
    cookie: int
    device: str
    interface: str
    addresses: list[str]


class StateText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file; `slimctl overlay show --json` prints the same."""

    format: int
    name: str
    segments: list[_SegmentText]
    underlay: str
    vni: int
    mtu: int
    port: int
    peers: list[str]
    attachments: list[_AttachmentText]
    last: list[str]


def encode(state: OverlayState) -> bytes:
    """As JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(as_text(state)), indent=2) + b"\n"


def as_text(state: OverlayState) -> StateText:
    """The state as the file has it."""
    settings = state.settings
    return StateText(
        format=_FORMAT,
        name=settings.name,
        segments=[_SegmentText(str(one.network), str(one.subnet)) for one in settings.segments],
        underlay=str(settings.underlay),
        vni=settings.vni,
        mtu=settings.mtu,
        port=settings.port,
        peers=[str(peer) for peer in state.peers],
        attachments=[
            _AttachmentText(
                one.namespace,
                one.cookie,
                one.device,
                one.interface,
                [str(address) for address in one.addresses],
            )
            for one in state.attachments
        ],
        last=[str(address) for address in state.last],
    )


def decode(data: bytes) -> OverlayState:
    """The reverse of `encode`; ValueError or msgspec.DecodeError for anything else."""
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError("it is too long")
    text = msgspec.json.decode(data, type=StateText)
    if text.format != _FORMAT:
        raise ValueError(f"format {text.format} is not {_FORMAT}; another version wrote it")
    settings = OverlaySettings(
        name=text.name,
        segments=tuple(
            Segment(
                network=ipaddress.ip_network(one.network), subnet=ipaddress.ip_network(one.subnet)
            )
            for one in text.segments
        ),
        underlay=parse_address(text.underlay),
        vni=text.vni,
        mtu=text.mtu,
        port=text.port,
    )
    return OverlayState(
        settings=settings,
        peers=_addresses(text.peers),
        attachments=tuple(
            Attachment(
                namespace=one.namespace,
                cookie=one.cookie,
                device=one.device,
                interface=one.interface,
                addresses=_addresses(one.addresses),
            )
            for one in text.attachments
        ),
        last=_addresses(text.last),
    )


def _addresses(texts: list[str]) -> tuple[Address, ...]:
    return tuple(parse_address(text) for text in texts)


def _wait_for_lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ControlError(
                    f"another command has held the lock on {path} for {LOCK_LIMIT_S:.0f} s",
                    hint=f"`fuser -v {path}` shows which",
                ) from None
        time.sleep(_LOCK_POLL_S)


def _failed(what: str, path: Path, error: OSError) -> SlimError:
    hint = "run it as root, or give --state-dir" if isinstance(error, PermissionError) else ""
    return SlimError(f"cannot {what} {path}: {error.strerror}", hint=hint)
