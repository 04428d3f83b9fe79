"""From a file or a directory to resources: all of them, or the mistakes that keep them out.

What a file says is remembered by its content, so that reading a directory again costs what has
changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.cluster_reading import read_cluster_policy
from slim.plugins.policy.networkpolicy.fields import Field, Report
from slim.plugins.policy.networkpolicy.mistakes import Mistake, shown
from slim.plugins.policy.networkpolicy.model import ClusterPolicy, Namespace, Origin
from slim.plugins.policy.networkpolicy.reading import read_namespace, read_network_policy
from slim.plugins.policy.networkpolicy.yaml_nodes import NotReadable, read_documents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from slim.plugins.policy.networkpolicy.model import Resource
    from slim.plugins.policy.networkpolicy.yaml_nodes import Node

SUFFIXES = (".json", ".yaml", ".yml")
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_TOTAL_BYTES = 64 * 1024 * 1024
MAX_FILES = 20_000
MAX_LIST_DEPTH = 2

_READERS: dict[tuple[str, str], Callable[[Field, Report], Resource | None]] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): read_network_policy,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): read_cluster_policy,
    ("v1", "Namespace"): read_namespace,
}
_VERSIONS = {kind: version for version, kind in _READERS}
_LISTS = {"List", *(f"{kind}List" for kind in _VERSIONS)}
_OLD = {
    "AdminNetworkPolicy": "rewrite it as a ClusterNetworkPolicy of tier Admin (Allow is Accept)",
    "BaselineAdminNetworkPolicy": "rewrite it as a ClusterNetworkPolicy of tier Baseline",
}


@dataclass(frozen=True, slots=True)
class FileContent:
    resources: tuple[Resource, ...]
    mistakes: tuple[Mistake, ...]


@dataclass(slots=True)
class Loaded:
    """What a path says. With mistakes (not mere warnings) nothing of it is to be used."""

    resources: list[Resource] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    warnings: list[Mistake] = field(default_factory=list)
    files: dict[tuple[str, bytes], FileContent] = field(default_factory=dict)
    """By name and digest: what the next load may take over."""

    def take(self, content: FileContent) -> None:
        self.resources += content.resources
        for each in content.mistakes:
            (self.warnings if each.is_warning else self.mistakes).append(each)


def load(
    path: Path,
    before: Loaded | None = None,
    instead: Mapping[Path, bytes | None] = MappingProxyType({}),
) -> Loaded:
    """Read a file, or the files of a directory (not of those below) named `*.yaml` and the like.

    `instead` are files of the directory as they might be; None: not there.
    """
    loaded = Loaded()
    known = before.files if before is not None else {}
    total = 0
    for file in sorted({*_files(path, loaded), *instead}):
        raw = instead[file] if file in instead else _read(file, loaded)
        if raw is None:
            continue
        total += len(raw)
        if total > MAX_TOTAL_BYTES:
            loaded.mistakes.append(
                Mistake(
                    file=str(path),
                    message=f"more than {MAX_TOTAL_BYTES >> 20} MiB of policies",
                    remedy="that cannot be meant: look for files that do not belong here",
                )
            )
            break
        key = (str(file), hashlib.blake2b(raw, digest_size=16).digest())
        content = known.get(key) or read_text(str(file), raw)
        loaded.files[key] = content
        loaded.take(content)
    _check_unique(loaded)
    return loaded


def _files(path: Path, loaded: Loaded) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        found = sorted(
            each
            for each in path.iterdir()
            # Mounted ConfigMaps and editors keep hidden copies beside the files.
            if each.suffix in SUFFIXES and not each.name.startswith(".")
        )
    except OSError as error:
        loaded.mistakes.append(_unreadable(path, error))
        return []
    if len(found) > MAX_FILES:
        loaded.mistakes.append(
            Mistake(
                file=str(path),
                message=f"{len(found)} files, and {MAX_FILES} are the most",
                remedy="put several documents into one file, separated by ---",
            )
        )
        return []
    return found


def _read(file: Path, loaded: Loaded) -> bytes | None:
    try:
        # A named pipe must not hold us up.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                loaded.mistakes.append(
                    Mistake(file=str(file), message="is no file", remedy="take it out of there")
                )
                return None
            with open(fd, "rb", closefd=False) as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as error:
        loaded.mistakes.append(_unreadable(file, error))
        return None
    if len(raw) > MAX_FILE_BYTES:
        loaded.mistakes.append(
            Mistake(
                file=str(file),
                message=f"is larger than {MAX_FILE_BYTES >> 20} MiB",
                remedy="split it into several files",
            )
        )
        return None
    return raw


def _unreadable(path: Path, error: OSError) -> Mistake:
    return Mistake(
        file=str(path),
        message=f"cannot be read: {error.strerror}",
        remedy="does it exist, and may slimd read it?",
    )


def read_text(file: str, raw: bytes) -> FileContent:
    """What the content of one file says."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        mistake = Mistake(
            file=file, line=line, message="this is no UTF-8", remedy="save the file as UTF-8"
        )
        return FileContent((), (mistake,))
    resources: list[Resource] = []
    mistakes: list[Mistake] = []
    number = 0
    try:
        for number, root in enumerate(read_documents(text), 1):
            for node in _unlisted(root):
                report = Report(Origin(file, number, node.line))
                resource = _read_document(Field(node, "", report), report)
                mistakes += sorted(report.found, key=lambda each: each.line)
                if resource is not None:
                    resources.append(resource)
    except NotReadable as error:
        mistakes.append(
            Mistake(
                file=file,
                line=error.line,
                document=number + 1,
                message=error.message,
                remedy=error.remedy,
            )
        )
    return FileContent(tuple(resources), tuple(mistakes))


def _unlisted(root: Node, depth: int = 0) -> Iterator[Node]:
    """The documents in a `kind: List`, as kubectl prints them; any other is itself."""
    if isinstance(root.value, dict) and depth < MAX_LIST_DEPTH:
        kind, items = root.value.get("kind"), root.value.get("items")
        is_list = kind is not None and isinstance(kind.value, str) and kind.value in _LISTS
        if is_list and items is not None and isinstance(items.value, list):
            for item in items.value:
                yield from _unlisted(item, depth + 1)
            return
    yield root


def _read_document(document: Field, report: Report) -> Resource | None:
    if document.node.value is None:
        # Nothing between two `---`.
        return None
    fields = document.children()
    if not isinstance(document.node.value, dict):
        return None
    words = {}
    for name in ("apiVersion", "kind"):
        if name not in fields:
            document.missing(
                name, "write `apiVersion: networking.k8s.io/v1`, `kind: NetworkPolicy`"
            )
        else:
            words[name] = fields[name].text()
    version, kind = words.get("apiVersion"), words.get("kind")
    if version is None or kind is None:
        return None
    report.title = _title(kind, fields)
    read = _READERS.get((version, kind))
    if read is not None:
        resource = read(document, report)
        return None if any(not each.is_warning for each in report.found) else resource
    if kind in _VERSIONS:
        fields["apiVersion"].mistake(
            f"{shown(version)} is not read here", f"write {_VERSIONS[kind]}"
        )
    else:
        fields["kind"].mistake(
            f"{shown(kind)} is no kind that is read here",
            _OLD.get(kind, f"keep other things elsewhere; policies are {', '.join(_VERSIONS)}"),
        )
    return None


def _title(kind: str, fields: dict[str, Field]) -> str:
    words = []
    metadata = fields.get("metadata")
    if metadata is not None and isinstance(metadata.node.value, dict):
        for key in ("namespace", "name"):
            node = metadata.node.value.get(key)
            if node is not None and isinstance(node.value, str):
                words.append(node.value)
    title = f"{kind} {'/'.join(words)}".strip()
    return title if title.isprintable() and len(title) <= 120 else shown(title)


def _check_unique(loaded: Loaded) -> None:
    seen: dict[tuple[str, str], Origin] = {}
    for each in loaded.resources:
        name = each.name if isinstance(each, Namespace | ClusterPolicy) else each.title
        key = (type(each).__name__, name)
        first = seen.setdefault(key, each.origin)
        if first is not each.origin:
            loaded.mistakes.append(
                Mistake(
                    file=each.origin.file,
                    line=each.origin.line,
                    document=each.origin.number,
                    path="metadata.name",
                    message=f"{name} is also in {first.file}:{first.line}",
                    remedy="remove one of the two, or give it another name",
                )
            )
