"""Certificates of hosts: made by `slimctl pki`, carried by the control channel and by rendezvous.

A host's certificate names the host (SAN DNS) and the overlay networks that it may speak for, as
SAN URIs `slim+network:10.77.1.0/24`. X.509 with ECDSA P-256 (RFC 5280, FIPS 186-5).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from slim.broker.endpoints import Address, Network, contains_any
from slim.broker.errors import ConfigError

NETWORK_SCHEME = "slim+network:"
ALPN = "slim/1"
AUTHORITY_CERTIFICATE = "authority.crt"
AUTHORITY_KEY = "authority.key"
CLOCK_SKEW = datetime.timedelta(minutes=5)
"""New certificates are valid from a little earlier: hosts' clocks differ."""
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """What a certificate says about its host."""

    host: str
    networks: tuple[Network, ...]
    not_after: datetime.datetime
    fingerprint: str

    def speaks_for(self, address: Address) -> bool:
        return contains_any(self.networks, address)


@dataclass(frozen=True, slots=True)
class HostCredentials:
    """A host's own certificate, key and authority, checked to belong together."""

    identity: HostIdentity
    certificate_der: bytes
    key: ec.EllipticCurvePrivateKey
    authority: x509.Certificate
    certificate_file: Path
    key_file: Path
    authority_file: Path

    def server_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Names are checked against Hello: peers are dialled by address.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile=str(self.authority_file))
        context.load_cert_chain(str(self.certificate_file), str(self.key_file))
        context.set_alpn_protocols([ALPN])
        return context


# --- making -----------------------------------------------------------------------------------


def create_authority(directory: Path, *, name: str, days: int) -> Path:
    """A new authority in `directory`; gives its certificate's path. Never overwrites one."""
    certificate_file = directory / AUTHORITY_CERTIFICATE
    key_file = directory / AUTHORITY_KEY
    for file in (certificate_file, key_file):
        if file.exists():
            raise ConfigError(
                f"{file} exists already", hint="use another directory; an authority is made once"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _make_directory(directory)
    _write(key_file, _key_pem(key), 0o600)
    _write(certificate_file, _pem(builder.sign(key, hashes.SHA256())), 0o644)
    return certificate_file


def issue_certificate(
    directory: Path, host: str, networks: list[str], *, days: int, out: Path, force: bool = False
) -> tuple[Path, Path]:
    """A certificate and key for a host, from the authority in `directory`; gives their paths."""
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{host!r} is no host name", hint="use lower case letters, digits and -")
    authority = _load_certificate(directory / AUTHORITY_CERTIFICATE)
    authority_key = _load_key(directory / AUTHORITY_KEY)
    if authority.not_valid_after_utc <= _now():
        raise ConfigError(
            f"the authority in {directory} expired on {authority.not_valid_after_utc:%Y-%m-%d}",
            hint="make a new one (slimctl pki init) and issue every host's certificate anew",
        )
    parsed = [_parse_network(text) for text in networks]
    if not parsed:
        raise ConfigError(
            f"no networks for {host}", hint="name what it may speak for: --network 10.77.1.0/24"
        )
    certificate_file, key_file = out / f"{host}.crt", out / f"{host}.key"
    for file in (certificate_file, key_file):
        if file.exists() and not force:
            raise ConfigError(f"{file} exists already", hint="say --force to replace it")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    names += [x509.UniformResourceIdentifier(f"{NETWORK_SCHEME}{net}") for net in parsed]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    builder = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    _make_directory(out)
    _write(key_file, _key_pem(key), 0o600)
    _write(certificate_file, _pem(builder.sign(authority_key, hashes.SHA256())), 0o644)
    return certificate_file, key_file


# --- reading ----------------------------------------------------------------------------------


def read_identity(certificate: x509.Certificate) -> HostIdentity:
    """What the certificate says; ValueError when it is no host's certificate of ours."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise ValueError("it names no host") from None
    hosts = names.get_values_for_type(x509.DNSName)
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise ValueError("it does not name exactly one host")
    networks = tuple(
        ipaddress.ip_network(uri.removeprefix(NETWORK_SCHEME))
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(NETWORK_SCHEME)
    )
    if not networks:
        raise ValueError("it names no overlay network")
    return HostIdentity(
        hosts[0],
        networks,
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def identity_from_der(der: bytes) -> HostIdentity:
    """As read_identity, for a certificate that TLS has verified; ValueError."""
    return read_identity(x509.load_der_x509_certificate(der))


def load_host_credentials(certificate: Path, key: Path, authority: Path) -> HostCredentials:
    """This host's own credentials; ConfigError names the file and the remedy."""
    own = _load_certificate(certificate)
    private = _load_key(key)
    root = _load_certificate(authority)
    remedy = "issue it with slimctl pki issue, by the authority that every host trusts"
    if _spki(own.public_key()) != _spki(private.public_key()):
        raise ConfigError(f"{key} is not the key of {certificate}", hint=remedy)
    if not _is_issued_by(own, root):
        raise ConfigError(f"{certificate} was not issued by {authority}", hint=remedy)
    for file, loaded in ((certificate, own), (authority, root)):
        if loaded.not_valid_after_utc <= _now():
            raise ConfigError(
                f"{file} expired on {loaded.not_valid_after_utc:%Y-%m-%d}", hint=remedy
            )
        if loaded.not_valid_before_utc > _now():
            raise ConfigError(f"{file} is not valid yet", hint="check this host's clock")
    try:
        identity = read_identity(own)
    except ValueError as error:
        raise ConfigError(f"{certificate} is no host's certificate: {error}", hint=remedy) from None
    der = own.public_bytes(serialization.Encoding.DER)
    return HostCredentials(identity, der, private, root, certificate, key, authority)


def describe(file: Path) -> dict[str, object]:
    """What `slimctl pki show` prints of a certificate."""
    certificate = _load_certificate(file)
    described: dict[str, object] = {
        "file": str(file),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
        "host": "",
        "networks": [],
    }
    try:
        identity = read_identity(certificate)
    except ValueError:
        described["kind"] = "authority"
    else:
        described["kind"] = "host"
        described["host"] = identity.host
        described["networks"] = [str(network) for network in identity.networks]
    return described


# --- statements outside TLS -------------------------------------------------------------------


def sign_statement(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA with SHA-256 over `data`."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def verify_statement(
    authority: x509.Certificate, der: bytes, signature: bytes, data: bytes
) -> HostIdentity | None:
    """Who signed `data`; None unless the certificate is the authority's, valid now, and fits."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        if not _is_issued_by(certificate, authority):
            return None
        if not certificate.not_valid_before_utc <= _now() < certificate.not_valid_after_utc:
            return None
        public = certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return None
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        return read_identity(certificate)
    except (ValueError, InvalidSignature, TypeError):
        return None


# --- pieces -----------------------------------------------------------------------------------


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - CLOCK_SKEW)
        .not_valid_after(_now() + datetime.timedelta(days=days))
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.ca


def _parse_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"network: {error}", hint="write it as 10.77.1.0/24") from None


def _load_certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{file}: {os.strerror(error.errno or 0)}", hint="slimctl pki init makes an authority"
        ) from None
    except ValueError:
        raise ConfigError(
            f"{file} holds no PEM certificate", hint="is it the right file?"
        ) from None


def _load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"{file}: {os.strerror(error.errno or 0)}", hint="slimctl pki issue makes it"
        ) from None
    except (ValueError, TypeError):
        raise ConfigError(
            f"{file} holds no PEM private key", hint="is it the right file?"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file} is no ECDSA key", hint="make it with slimctl pki")
    return key


def _spki(key: object) -> bytes:
    public_bytes = key.public_bytes  # type: ignore[attr-defined]
    return bytes(
        public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: {os.strerror(error.errno or 0)}", hint="choose another directory"
        ) from None


def _write(file: Path, data: bytes, mode: int) -> None:
    """Atomically, and never readable by others for a moment."""
    try:
        fd, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(fd, "wb") as opened:
            os.fchmod(fd, mode)
            opened.write(data)
        Path(temporary).replace(file)
    except OSError as error:
        raise ConfigError(
            f"{file}: {os.strerror(error.errno or 0)}", hint="choose another directory"
        ) from None
