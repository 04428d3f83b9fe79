"""Certificates of hosts: made by `slimctl pki`, carried by the control channel and by rendezvous.

X.509 with ECDSA P-256 (RFC 5280, FIPS 186-5); what they say is read in peers.identity, which is
exported from here.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from slim.broker.errors import ConfigError
from slim.broker.peers import pem_files
from slim.broker.peers.identity import (
    HOST,
    NETWORK_SCHEME,
    HostIdentity,
    identity_from_der,
    is_authority,
    is_issued_by,
    now,
    read_identity,
    sign_statement,
    verify_statement,
)

if TYPE_CHECKING:
    from pathlib import Path

    from slim.broker.endpoints import Network

ALPN = "slim/1"
AUTHORITY_CERTIFICATE = "authority.crt"
AUTHORITY_KEY = "authority.key"
CLOCK_SKEW = datetime.timedelta(minutes=5)
"""New certificates are valid from a little earlier: hosts' clocks differ."""
_REMEDY = "issue it with slimctl pki issue, by the authority that every host trusts"


@dataclass(frozen=True, slots=True)
class HostCredentials:
    """A host's own certificate, key and authorities, checked to belong together."""

    identity: HostIdentity
    certificate_der: bytes
    key: ec.EllipticCurvePrivateKey
    authorities: tuple[x509.Certificate, ...]
    """Several while one replaces another."""
    certificate_file: Path
    key_file: Path

    def server_context(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        # Nobody resumes: who connects shows its certificate each time.
        context.num_tickets = 0
        return context

    def client_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Names are checked against Hello: peers are dialled by address.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        # As verify_statement: an authority need not be a root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(
            cadata=b"".join(
                authority.public_bytes(serialization.Encoding.DER) for authority in self.authorities
            )
        )
        try:
            context.load_cert_chain(str(self.certificate_file), str(self.key_file))
        except OSError as error:
            raise ConfigError(
                f"TLS does not take {self.certificate_file} and {self.key_file}: {error}",
                hint=_REMEDY,
            ) from None
        context.set_alpn_protocols([ALPN])
        return context


# --- making -----------------------------------------------------------------------------------


def create_authority(directory: Path, *, name: str, days: int) -> Path:
    """A new authority in `directory`; gives its certificate's path. Never overwrites one."""
    certificate_file = directory / AUTHORITY_CERTIFICATE
    key_file = directory / AUTHORITY_KEY
    pem_files.refuse_existing(
        certificate_file, key_file, hint="use another directory; an authority is made once"
    )
    if not (0 < len(name) <= 64 and name.isprintable()):
        raise ConfigError(
            f"{name!r} is no name for an authority", hint="use 1 to 64 printable characters"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), now() + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    pem_files.make_directory(directory)
    certificate = builder.sign(key, hashes.SHA256())
    pem_files.write_pair(certificate_file, certificate, key_file, key, replace=False)
    return certificate_file


def issue_certificate(
    directory: Path, host: str, networks: list[str], *, days: int, out: Path, force: bool = False
) -> tuple[Path, Path]:
    """A certificate and key for a host, from the authority in `directory`; gives their paths.

    It ends no later than the authority does.
    """
    if not HOST.fullmatch(host):
        raise ConfigError(
            f"{host!r} is no host name",
            hint="use up to 63 lower case letters, digits, '.' and '-', as [host] name",
        )
    parsed = sorted({_parse_network(text) for text in networks}, key=_order)
    if not parsed:
        raise ConfigError(
            f"no networks for {host}", hint="name what it may speak for: --network 10.77.1.0/24"
        )
    authority, authority_key = _load_authority(directory)
    certificate_file, key_file = out / f"{host}.crt", out / f"{host}.key"
    if not force:
        pem_files.refuse_existing(certificate_file, key_file, hint="say --force to replace it")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    names += [x509.UniformResourceIdentifier(f"{NETWORK_SCHEME}{net}") for net in parsed]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    end = min(now() + datetime.timedelta(days=days), authority.not_valid_after_utc)
    builder = (
        _builder(subject, authority.subject, key.public_key(), end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    pem_files.make_directory(out)
    certificate = builder.sign(authority_key, hashes.SHA256())
    pem_files.write_pair(certificate_file, certificate, key_file, key, replace=force)
    return certificate_file, key_file


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file, key_file = directory / AUTHORITY_CERTIFICATE, directory / AUTHORITY_KEY
    authority = pem_files.load_certificate(certificate_file)
    key = pem_files.load_key(key_file)
    if not is_authority(authority):
        raise ConfigError(
            f"{certificate_file} is no authority's certificate",
            hint="slimctl pki init makes an authority",
        )
    if authority.public_key() != key.public_key():
        raise ConfigError(
            f"{key_file} is not the key of {certificate_file}",
            hint="bring both from where the authority was made",
        )
    if authority.not_valid_after_utc <= now():
        raise ConfigError(
            f"the authority in {directory} expired on {authority.not_valid_after_utc:%Y-%m-%d}",
            hint="make a new one (slimctl pki init) and issue every host's certificate anew",
        )
    return authority, key


# --- reading ----------------------------------------------------------------------------------


def load_host_credentials(certificate: Path, key: Path, authority: Path) -> HostCredentials:
    """This host's own credentials; ConfigError names the file and the remedy."""
    own = pem_files.load_certificate(certificate)
    private = pem_files.load_key(key)
    authorities = pem_files.load_certificates(authority)
    if own.public_key() != private.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}", hint=_REMEDY)
    if not all(is_authority(each) for each in authorities):
        raise ConfigError(
            f"{authority} holds a certificate that is no authority's",
            hint=f"copy {AUTHORITY_CERTIFICATE} from where slimctl pki init made it",
        )
    issuers = [each for each in authorities if is_issued_by(own, each)]
    if not issuers:
        raise ConfigError(f"{certificate} was not issued by {authority}", hint=_REMEDY)
    issuer = max(issuers, key=lambda each: each.not_valid_after_utc)
    for file, loaded in ((certificate, own), (authority, issuer)):
        if loaded.not_valid_after_utc <= now():
            raise ConfigError(
                f"{file} expired on {loaded.not_valid_after_utc:%Y-%m-%d}", hint=_REMEDY
            )
        if loaded.not_valid_before_utc > now():
            raise ConfigError(f"{file} is not valid yet", hint="check this host's clock")
    try:
        identity = read_identity(own)
    except ValueError as error:
        raise ConfigError(
            f"{certificate} is no host's certificate: {error}", hint=_REMEDY
        ) from None
    der = own.public_bytes(serialization.Encoding.DER)
    return HostCredentials(identity, der, private, authorities, certificate, key)


def describe(file: Path) -> list[dict[str, object]]:
    """What `slimctl pki show` prints of each certificate in the file."""
    return [_describe(file, certificate) for certificate in pem_files.load_certificates(file)]


def _describe(file: Path, certificate: x509.Certificate) -> dict[str, object]:
    described: dict[str, object] = {
        "file": os.fspath(file),
        "kind": "authority" if is_authority(certificate) else "other",
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
        return described
    networks = [str(network) for network in identity.networks]
    return {**described, "kind": "host", "host": identity.host, "networks": networks}


# --- pieces -----------------------------------------------------------------------------------


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - CLOCK_SKEW)
        .not_valid_after(end)
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


def _parse_network(text: str) -> Network:
    try:
        if "%" in text:
            raise ValueError(f"{text!r} has a zone, which has no meaning on another host")
        network = ipaddress.ip_network(text)
        if network.version == 6 and network.network_address.ipv4_mapped is not None:
            # Nothing would ever match it: addresses are unmapped at the border (endpoints).
            raise ValueError(f"{text!r} is an IPv4 network in disguise")
    except ValueError as error:
        raise ConfigError(f"network: {error}", hint="write it as 10.77.1.0/24") from None
    return network


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


__all__ = [
    "ALPN",
    "AUTHORITY_CERTIFICATE",
    "AUTHORITY_KEY",
    "HostCredentials",
    "HostIdentity",
    "create_authority",
    "describe",
    "identity_from_der",
    "issue_certificate",
    "load_host_credentials",
    "read_identity",
    "sign_statement",
    "verify_statement",
]
