"""What a certificate says, and whether to believe it: in TLS and outside of it.

A host's certificate names the host (SAN DNS) and the overlay networks that it may speak for, as
SAN URIs `slim+network:10.77.1.0/24`. Whatever a stranger sends here ends in an identity, None or
ValueError.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from slim.broker.endpoints import Address, Network, contains_any

NETWORK_SCHEME = "slim+network:"
HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_MALFORMED = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that cryptography raises on a stranger's certificate; most are no ValueError."""


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """What a certificate says about its host."""

    host: str
    networks: tuple[Network, ...]
    not_after: datetime.datetime
    fingerprint: str

    def speaks_for(self, address: Address) -> bool:
        return contains_any(self.networks, address)


def read_identity(certificate: x509.Certificate) -> HostIdentity:
    """What the certificate says; ValueError when it is no host's certificate of ours."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _MALFORMED:
        raise ValueError("it names no host") from None
    hosts = names.get_values_for_type(x509.DNSName)
    if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
        raise ValueError("it does not name exactly one host")
    networks = tuple(
        _read_network(uri.removeprefix(NETWORK_SCHEME))
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(NETWORK_SCHEME)
    )
    if not networks:
        raise ValueError("it names no overlay network")
    if is_authority(certificate) or not _may_sign(certificate):
        raise ValueError("it is not for signing by a host")
    return HostIdentity(
        hosts[0],
        networks,
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def identity_from_der(der: bytes) -> HostIdentity:
    """As read_identity, for a certificate that TLS has verified; ValueError."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except _MALFORMED as error:
        raise ValueError(str(error)) from None
    return read_identity(certificate)


def sign_statement(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA with SHA-256 over `data`."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def verify_statement(
    authorities: tuple[x509.Certificate, ...], der: bytes, signature: bytes, data: bytes
) -> HostIdentity | None:
    """Who signed `data`; None unless the certificate is an authority's, valid now, and fits."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        if not _is_valid_now(certificate) or not any(
            _is_valid_now(authority) and is_issued_by(certificate, authority)
            for authority in authorities
        ):
            return None
        public = certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return None
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        return read_identity(certificate)
    except _MALFORMED:
        return None


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except _MALFORMED:
        return False
    return is_authority(authority)


def is_authority(certificate: x509.Certificate) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except _MALFORMED:
        return False
    return extension.value.ca


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether its key may sign statements and handshakes (RFC 5280, 4.2.1.3)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return True
    return extension.value.digital_signature


def _is_valid_now(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc <= now() < certificate.not_valid_after_utc


def _read_network(text: str) -> Network:
    """A network in the one form that is issued; ValueError for any other."""
    network = ipaddress.ip_network(text)
    if str(network) != text:
        raise ValueError(f"{text!r} is not the network {network}")
    return network
