"""Certificates and keys as PEM files (RFC 7468): read and written, every mistake a ConfigError.

Nothing is overwritten unless the caller says so, and a key is never readable by others, not even
for a moment.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from slim.broker.errors import ConfigError

MAX_FILE = 1 << 20


def load_certificates(file: Path) -> tuple[x509.Certificate, ...]:
    """All certificates of the file, at least one."""
    data = _read(file, "slimctl pki init makes an authority, slimctl pki issue a certificate")
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except (ValueError, x509.InvalidVersion):
        raise ConfigError(
            f"{file} holds no PEM certificate", hint="is it the right file?"
        ) from None


def load_certificate(file: Path) -> x509.Certificate:
    """The first certificate of the file."""
    return load_certificates(file)[0]


def load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """A private key, which nobody but its owner, and a group at most, may read."""
    data = _read(file, "slimctl pki init and slimctl pki issue make keys")
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:
        # So says cryptography when a password is missing.
        raise ConfigError(
            f"{file} is encrypted", hint="slimd cannot ask for a password; decrypt the key"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{file} holds no PEM private key", hint="is it the right file?"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file} is no ECDSA key", hint="make it with slimctl pki")
    _refuse_public(file)
    return key


def _refuse_public(file: Path) -> None:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise _mistake(file, error, "somebody else took it away just now") from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"{file} is a private key that others may read or write (mode {mode:04o})",
            hint=f"chmod 600 {file}; if somebody has read it, issue another",
        )


def write_pair(
    certificate_file: Path,
    certificate: x509.Certificate,
    key_file: Path,
    key: ec.EllipticCurvePrivateKey,
    *,
    replace: bool,
) -> None:
    """Both files, each atomically; the key first: a certificate is of no use without it."""
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _write(key_file, key_pem, 0o600, replace=replace)
    _write(certificate_file, pem, 0o644, replace=replace)


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _mistake(directory, error, "choose another directory") from None


def refuse_existing(*files: Path, hint: str) -> None:
    """ConfigError if one of the files is there."""
    for file in files:
        if os.path.lexists(file):
            raise ConfigError(f"{file} exists already", hint=hint)


def _read(file: Path, hint: str) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE)
    except OSError as error:
        raise _mistake(file, error, hint) from None


def _write(file: Path, data: bytes, mode: int, *, replace: bool) -> None:
    try:
        fd, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(fd, "wb") as opened:
                os.fchmod(fd, mode)
                opened.write(data)
                opened.flush()
                os.fsync(fd)
            if replace:
                temporary.replace(file)
            else:
                # Unlike rename(2), link(2) leaves a file alone that came in the meantime.
                os.link(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError(f"{file} exists already", hint="somebody else made it just now") from None
    except OSError as error:
        raise _mistake(file, error, "choose another directory") from None


def _mistake(path: Path, error: OSError, hint: str) -> ConfigError:
    name = os.strerror(error.errno or errno.EIO)
    return ConfigError(f"{path}: {name}", hint=hint)
