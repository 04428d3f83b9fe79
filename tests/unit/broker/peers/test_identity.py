"""What is believed of a certificate and of a statement, and what is not."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from slim.broker.peers import identity, pem_files, pki
from slim.broker.peers.identity import (
    HostIdentity,
    identity_from_der,
    sign_statement,
    verify_statement,
)
from support.peering import Authority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

DAY = datetime.timedelta(days=1)
DATA = b"the statement"
HOST = x509.DNSName("a")
NETWORK = x509.UniformResourceIdentifier("slim+network:10.77.1.0/24")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def credentials(authority: Authority) -> pki.HostCredentials:
    return authority.credentials("a", "10.77.1.0/24", "fd00:77::/64")


class Forge:
    """Makes any certificate with the authority's own key."""

    def __init__(self, authority: Authority) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = pem_files.load_certificate(authority.certificate)
        self.root_key = pem_files.load_key(authority.directory / "authority.key")

    def make(
        self,
        names: Sequence[x509.GeneralName] = (HOST, NETWORK),
        *extensions: x509.ExtensionType,
        public: CertificatePublicKeyTypes | None = None,
        issuer: x509.Name | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]))
            .issuer_name(issuer or self.root.subject)
            .public_key(public or self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        certificate = builder.sign(signer or self.root_key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.DER)

    def verify(self, der: bytes) -> HostIdentity | None:
        return verify_statement((self.root,), der, sign_statement(self.key, DATA), DATA)


@pytest.fixture(scope="module")
def forge(authority: Authority) -> Forge:
    return Forge(authority)


def usage(*, signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signature, *[not signature, *[False] * 7])


# --- certificates -----------------------------------------------------------------------------


def test_a_certificate_says_who_it_is_and_for_what_it_speaks(
    credentials: pki.HostCredentials,
) -> None:
    read = identity_from_der(credentials.certificate_der)
    assert read == credentials.identity
    assert read.host == "a"
    for text, expected in [
        ("10.77.1.5", True),
        ("10.77.2.5", False),
        ("fd00:77::5", True),
        ("fd00:78::5", False),
        ("::ffff:10.77.1.5", False),
    ]:
        assert read.speaks_for(ip_address(text)) is expected


def test_other_names_in_a_certificate_do_no_harm(forge: Forge) -> None:
    other = x509.UniformResourceIdentifier("https://example.org/")
    read = identity_from_der(forge.make([HOST, other, NETWORK]))
    assert [str(network) for network in read.networks] == ["10.77.1.0/24"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "names no host"),
        ([NETWORK], "exactly one host"),
        ([HOST, x509.DNSName("b"), NETWORK], "exactly one host"),
        ([x509.DNSName("A"), NETWORK], "exactly one host"),
        ([x509.DNSName("*"), NETWORK], "exactly one host"),
        ([HOST], "names no overlay network"),
        ([HOST, x509.UniformResourceIdentifier("slim+network:")], "network"),
        ([HOST, x509.UniformResourceIdentifier("slim+network:10.77.1.5/24")], "host bits"),
        ([HOST, x509.UniformResourceIdentifier("slim+network:10.77.1.0")], "is not the network"),
        ([HOST, x509.UniformResourceIdentifier("slim+network:10.0.0.0/255.0.0.0")], "is not the"),
        ([HOST, NETWORK, x509.UniformResourceIdentifier("slim+network:all")], "IPv4 or IPv6"),
    ],
)
def test_a_certificate_that_is_no_hosts_is_refused(
    forge: Forge, names: list[x509.GeneralName], complaint: str
) -> None:
    der = forge.make(names)
    with pytest.raises(ValueError, match=complaint):
        identity_from_der(der)
    assert forge.verify(der) is None


@pytest.mark.parametrize(
    "extension",
    [x509.BasicConstraints(ca=True, path_length=None), usage(signature=False)],
    ids=["authority", "not for signing"],
)
def test_a_certificate_for_something_else_is_refused(
    forge: Forge, extension: x509.ExtensionType
) -> None:
    der = forge.make((HOST, NETWORK), extension)
    with pytest.raises(ValueError, match="not for signing by a host"):
        identity_from_der(der)
    assert forge.verify(der) is None


def test_a_certificate_for_signing_is_taken(forge: Forge) -> None:
    assert forge.verify(forge.make((HOST, NETWORK), usage(signature=True))) is not None


# --- statements -------------------------------------------------------------------------------


def test_a_statement_tells_who_made_it(credentials: pki.HostCredentials) -> None:
    signature = sign_statement(credentials.key, DATA)
    verified = verify_statement(
        credentials.authorities, credentials.certificate_der, signature, DATA
    )
    assert verified == credentials.identity


def test_any_of_several_authorities_may_have_issued_the_certificate(
    credentials: pki.HostCredentials, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = pem_files.load_certificate(Authority(tmp_path_factory.mktemp("other")).certificate)
    signature = sign_statement(credentials.key, DATA)
    for authorities in [(other, *credentials.authorities), (*credentials.authorities, other)]:
        assert verify_statement(authorities, credentials.certificate_der, signature, DATA)
    assert not verify_statement((other,), credentials.certificate_der, signature, DATA)
    assert not verify_statement((), credentials.certificate_der, signature, DATA)


def test_a_changed_statement_or_signature_is_not_believed(
    credentials: pki.HostCredentials,
) -> None:
    signature = sign_statement(credentials.key, DATA)
    trust, der = credentials.authorities, credentials.certificate_der
    assert verify_statement(trust, der, signature, DATA + b".") is None
    assert verify_statement(trust, der, signature[:-1], DATA) is None
    assert verify_statement(trust, der, b"", DATA) is None
    assert verify_statement(trust, der, bytes(len(signature)), DATA) is None


def test_the_signature_of_another_key_is_not_believed(
    credentials: pki.HostCredentials, authority: Authority
) -> None:
    other = authority.credentials("b")
    signature = sign_statement(other.key, DATA)
    trust = credentials.authorities
    assert verify_statement(trust, credentials.certificate_der, signature, DATA) is None


def test_a_certificate_that_only_names_the_authority_is_not_believed(forge: Forge) -> None:
    assert forge.verify(forge.make(signer=forge.key)) is None


def test_a_certificate_that_a_host_issued_is_not_believed(
    forge: Forge, credentials: pki.HostCredentials
) -> None:
    host = x509.load_der_x509_certificate(credentials.certificate_der)
    der = forge.make(issuer=host.subject, signer=credentials.key)
    assert forge.verify(der) is None
    assert verify_statement((host,), der, sign_statement(forge.key, DATA), DATA) is None


def test_the_authority_itself_makes_no_statements(forge: Forge) -> None:
    der = forge.root.public_bytes(serialization.Encoding.DER)
    assert verify_statement((forge.root,), der, sign_statement(forge.root_key, DATA), DATA) is None


@pytest.mark.parametrize("days", [-2, 2, 61])
def test_a_certificate_at_another_time_is_not_believed(
    forge: Forge, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    der = forge.make()
    assert forge.verify(der) is not None
    shifted = datetime.datetime.now(datetime.UTC) + days * DAY
    monkeypatch.setattr(identity, "now", lambda: shifted)
    assert forge.verify(der) is None


def test_an_expired_authority_vouches_for_nobody(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = datetime.datetime.now(datetime.UTC) - 61 * DAY
    with monkeypatch.context() as patched:
        patched.setattr(pki, "now", lambda: past)
        old = Forge(Authority(tmp_path_factory.mktemp("old")))
    assert old.verify(old.make()) is None


def test_a_key_of_another_kind_is_not_believed(forge: Forge) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert forge.verify(forge.make(public=other.public_key())) is None


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_damaged_certificates_are_refused_whatever_is_wrong_with_them(
    credentials: pki.HostCredentials,
) -> None:
    source = random.Random(22)
    signature = sign_statement(credentials.key, DATA)
    seen: Counter[str] = Counter()
    for _ in range(6_000):
        damaged = bytearray(credentials.certificate_der)
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(len(damaged))] ^= source.randrange(1, 256)
        der = bytes(damaged)
        assert verify_statement(credentials.authorities, der, signature, DATA) is None
        try:
            identity_from_der(der)
        except ValueError:
            seen["refused"] += 1
        else:
            # TLS would have refused it before.
            seen["read"] += 1
    assert min(seen["refused"], seen["read"]) > 500


@pytest.mark.parametrize("der", [b"", b"\0", b"0\x82\xff\xff", bytes(1000)])
def test_what_is_no_certificate_is_refused(forge: Forge, der: bytes) -> None:
    assert forge.verify(der) is None
    with pytest.raises(ValueError):
        identity_from_der(der)
