"""Certificates as files and as `slimctl pki` makes them; a mistake is one sentence and a hint."""

from __future__ import annotations

import datetime
import json
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from slim.broker.cli.main import main
from slim.broker.errors import ConfigError
from slim.broker.peers import pem_files, pki
from support.peering import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY = datetime.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def shift_now(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let making and loading believe in another day; what others check keeps the true time."""
    shifted = datetime.datetime.now(datetime.UTC) + days * DAY
    monkeypatch.setattr(pki, "now", lambda: shifted)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


# --- making -----------------------------------------------------------------------------------


def test_an_authority_keeps_its_key_to_itself(tmp_path: Path) -> None:
    certificate = pki.create_authority(tmp_path / "new" / "pki", name="Our authority", days=30)
    assert certificate == tmp_path / "new" / "pki" / "authority.crt"
    assert mode(certificate) == 0o644
    assert mode(certificate.with_suffix(".key")) == 0o600
    assert mode(certificate.parent) == 0o700
    assert {file.name for file in certificate.parent.iterdir()} == {
        "authority.crt",
        "authority.key",
    }


def test_an_authority_is_never_overwritten(authority: Authority) -> None:
    before = authority.certificate.read_bytes()
    with pytest.raises(ConfigError, match=r"authority.crt exists already"):
        pki.create_authority(authority.directory, name="Another", days=1)
    assert authority.certificate.read_bytes() == before
    authority.certificate.unlink()
    with pytest.raises(ConfigError, match=r"authority.key exists already"):
        pki.create_authority(authority.directory, name="Another", days=1)
    assert not authority.certificate.exists()


@pytest.mark.parametrize("name", ["", "x" * 65, "line\nline"])
def test_an_authority_has_a_name_that_can_be_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for an authority"):
        pki.create_authority(tmp_path, name=name, days=1)


def test_a_certificate_says_for_which_networks_the_host_speaks(authority: Authority) -> None:
    networks = ["10.77.1.0/24", "fd00:77:1::/64", "10.77.1.0/24", "10.5.0.0/16"]
    certificate, key = authority.issue("node-1.example", *networks)
    (described,) = pki.describe(certificate)
    assert described["kind"] == "host"
    assert described["host"] == "node-1.example"
    assert described["networks"] == ["10.5.0.0/16", "10.77.1.0/24", "fd00:77:1::/64"]
    assert mode(key) == 0o600
    assert mode(certificate) == 0o644


def test_a_certificate_is_for_tls_and_statements_only(authority: Authority) -> None:
    certificate, _ = authority.issue("a")
    extensions = pem_files.load_certificate(certificate).extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use._name for use in extended} == {"serverAuth", "clientAuth"}


def test_a_certificate_is_replaced_only_by_force(authority: Authority) -> None:
    certificate, key = authority.issue("a")
    before = key.read_bytes()
    out = certificate.parent
    with pytest.raises(ConfigError, match=r"a.crt exists already") as caught:
        pki.issue_certificate(authority.directory, "a", ["10.77.1.0/24"], days=1, out=out)
    assert "--force" in caught.value.hint
    assert key.read_bytes() == before
    authority.issue("a")
    assert key.read_bytes() != before
    # Nothing is left of the writing.
    assert {file.name for file in out.iterdir()} == {"a.crt", "a.key"}


def test_a_file_that_comes_while_we_write_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pem_files, "refuse_existing", lambda *files, hint: None)
    key = tmp_path / "authority.key"
    key.write_text("somebody's key")
    with pytest.raises(ConfigError, match=r"authority.key exists already"):
        pki.create_authority(tmp_path, name="Slim", days=1)
    assert key.read_text() == "somebody's key"
    assert [file.name for file in tmp_path.iterdir()] == ["authority.key"]


def test_a_certificate_does_not_outlive_its_authority(authority: Authority) -> None:
    certificate, _ = authority.issue("a", days=3650)
    ends = [
        pem_files.load_certificate(file).not_valid_after_utc
        for file in (certificate, authority.certificate)
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "network",
    ["10.77.1.5/24", "10.77.1.0/33", "ten", "", "fe80::%eth0/64", "::ffff:10.0.0.0/104"],
)
def test_a_network_that_is_none_is_refused(authority: Authority, network: str) -> None:
    with pytest.raises(ConfigError, match=r"^network: ") as caught:
        authority.issue("a", network)
    assert "10.77.1.0/24" in caught.value.hint


@pytest.mark.parametrize("host", ["", "Node-1", "-a", "a_b", "a/b", "../a", "x" * 64, "a\n"])
def test_a_host_name_that_is_none_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(ConfigError, match="is no host name"):
        authority.issue(host, "10.77.1.0/24")


def test_a_host_speaks_for_something(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no networks for a"):
        pki.issue_certificate(authority.directory, "a", [], days=1, out=tmp_path)


def test_without_an_authority_nothing_is_issued(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"authority.crt: No such file") as caught:
        pki.issue_certificate(tmp_path, "a", ["10.0.0.0/8"], days=1, out=tmp_path)
    assert "slimctl pki init" in caught.value.hint
    assert [*tmp_path.iterdir()] == []


def test_an_expired_authority_issues_nothing(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_now(monkeypatch, 61)
    with pytest.raises(ConfigError, match=r"expired on \d{4}-\d\d-\d\d"):
        authority.issue("a")


def test_an_authority_with_a_key_that_is_not_its_own_issues_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    key = authority.directory / "authority.key"
    key.write_bytes((other.directory / "authority.key").read_bytes())
    with pytest.raises(ConfigError, match=r"authority.key is not the key of .*authority.crt"):
        authority.issue("a")


def test_a_hosts_certificate_issues_nothing(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("a")
    (tmp_path / "authority.crt").write_bytes(certificate.read_bytes())
    (tmp_path / "authority.key").write_bytes(key.read_bytes())
    (tmp_path / "authority.key").chmod(0o600)
    with pytest.raises(ConfigError, match="is no authority's certificate"):
        pki.issue_certificate(tmp_path, "b", ["10.0.0.0/8"], days=1, out=tmp_path)


def test_a_directory_that_cannot_be_made_is_one_sentence(authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"Not a directory|File exists"):
        pki.issue_certificate(
            authority.directory, "a", ["10.0.0.0/8"], days=1, out=authority.certificate / "x"
        )


# --- loading ----------------------------------------------------------------------------------


def test_credentials_that_belong_together_are_taken(authority: Authority) -> None:
    credentials = authority.credentials("a")
    assert credentials.identity.host == "a"
    assert [str(network) for network in credentials.identity.networks] == ["10.77.1.0/24"]
    assert credentials.identity.not_after > datetime.datetime.now(datetime.UTC)
    assert len(credentials.identity.fingerprint) == 64


def test_credentials_are_taken_while_one_authority_replaces_another(
    authority: Authority, tmp_path: Path
) -> None:
    newer = Authority(tmp_path / "newer")
    both = tmp_path / "both.crt"
    both.write_bytes(newer.certificate.read_bytes() + authority.certificate.read_bytes())
    for each in (authority, newer):
        credentials = pki.load_host_credentials(*each.issue("a"), both)
        assert len(credentials.authorities) == 2
        assert len(credentials.client_context().get_ca_certs()) == 2


def _load(
    authority: Authority,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    root: Path | None = None,
) -> ConfigError:
    own = authority.issue("a")
    with pytest.raises(ConfigError) as caught:
        pki.load_host_credentials(
            certificate or own[0], key or own[1], root or authority.certificate
        )
    assert caught.value.hint
    return caught.value


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    _, other = authority.issue("b")
    assert "b.key is not the key of " in _load(authority, key=other).message


@pytest.mark.parametrize("open_to_others", [0o644, 0o604, 0o602, 0o620])
def test_a_key_that_others_may_read_or_write_is_refused(
    authority: Authority, open_to_others: int
) -> None:
    certificate, key = authority.issue("a")
    key.chmod(open_to_others)
    with pytest.raises(ConfigError, match=rf"{key} .* \(mode {open_to_others:04o}\)") as caught:
        pki.load_host_credentials(certificate, key, authority.certificate)
    assert caught.value.hint.startswith(f"chmod 600 {key}")
    key.chmod(0o640)
    pki.load_host_credentials(certificate, key, authority.certificate)


def test_a_certificate_of_another_authority_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    error = _load(authority, root=other.certificate)
    assert "a.crt was not issued by " in error.message
    assert "slimctl pki issue" in error.hint


def test_a_hosts_certificate_is_no_authority(authority: Authority) -> None:
    certificate, _ = authority.issue("a")
    error = _load(authority, root=certificate)
    assert "holds a certificate that is no authority's" in error.message


@pytest.mark.parametrize(
    ("days", "complaint"),
    [
        (31, "a.crt expired on "),
        (61, "a.crt expired on "),
        (-1, "a.crt is not valid yet"),
    ],
)
def test_a_certificate_at_another_time_is_refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, days: int, complaint: str
) -> None:
    files = authority.issue("a")
    shift_now(monkeypatch, days)
    with pytest.raises(ConfigError, match=complaint):
        pki.load_host_credentials(*files, authority.certificate)


def test_files_that_are_missing_or_something_else_are_named(
    authority: Authority, tmp_path: Path
) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("nothing of use\n")
    certificate, key = authority.issue("a")
    for name in ("certificate", "key", "root"):
        assert f"{missing}: No such file" in _load(authority, **{name: missing}).message
        assert f"{empty} holds no PEM" in _load(authority, **{name: empty}).message
        assert "Is a directory" in _load(authority, **{name: tmp_path}).message
    assert "holds no PEM private key" in _load(authority, key=certificate).message
    assert "holds no PEM certificate" in _load(authority, certificate=key).message


def test_keys_of_other_kinds_and_encrypted_ones_are_named(
    authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "key"

    def write(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes) -> None:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        file.write_bytes(key.private_bytes(encoding, form, encryption))

    write(ed25519.Ed25519PrivateKey.generate(), b"")
    assert "is no ECDSA key" in _load(authority, key=file).message
    write(ec.generate_private_key(ec.SECP256R1()), b"secret")
    assert "is encrypted" in _load(authority, key=file).message


def test_a_certificate_of_the_authority_without_networks_is_no_hosts(authority: Authority) -> None:
    certificate, key_file = authority.issue("a")
    key, root = pem_files.load_key(key_file), pem_files.load_certificate(authority.certificate)
    now = datetime.datetime.now(datetime.UTC)
    bare = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .sign(pem_files.load_key(authority.directory / "authority.key"), hashes.SHA256())
    )
    certificate.write_bytes(bare.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="is no host's certificate: it names no host"):
        pki.load_host_credentials(certificate, key_file, authority.certificate)


# --- slimctl pki ------------------------------------------------------------------------------


@pytest.fixture
def slimctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run slimctl; gives exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


def test_slimctl_makes_an_authority_and_certificates_that_slimd_takes(
    slimctl: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, output, _ = slimctl("pki", "init", tmp_path / "pki", "--name", "Ours", "--days", 10)
    assert code == 0
    assert "[peers] authority" in output
    networks = ("--network", "10.77.1.0/24", "--network", "fd00:77::/64")
    out = tmp_path / "a"
    code, output, _ = slimctl("pki", "issue", tmp_path / "pki", "a", *networks, "--out", out)
    assert code == 0
    assert str(out / "a.crt") in output
    credentials = pki.load_host_credentials(
        out / "a.crt", out / "a.key", tmp_path / "pki" / "authority.crt"
    )
    assert len(credentials.identity.networks) == 2


def test_slimctl_says_a_mistake_in_one_line_with_a_hint(
    slimctl: Callable[..., tuple[int, str, str]], authority: Authority, tmp_path: Path
) -> None:
    mistakes: list[tuple[tuple[object, ...], str]] = [
        (("init", authority.directory), "exists already"),
        (("issue", tmp_path / "nowhere", "a", "--network", "10.0.0.0/8"), "No such file"),
        (("issue", authority.directory, "a", "--network", "10.0.0.1/8"), "has host bits set"),
        (("issue", authority.directory, "A", "--network", "10.0.0.0/8"), "is no host name"),
        (("show", tmp_path / "nowhere"), "No such file"),
    ]
    for arguments, complaint in mistakes:
        code, output, errors = slimctl("pki", *arguments)
        assert (code, output) == (2, "")
        first, second = errors.splitlines()
        assert first.startswith("slimctl: ")
        assert complaint in first
        assert second.startswith("  hint: ")


def test_slimctl_wants_a_network(
    slimctl: Callable[..., tuple[int, str, str]], authority: Authority
) -> None:
    code, _, errors = slimctl("pki", "issue", authority.directory, "a")
    assert code == 2
    assert "--network" in errors


def test_slimctl_shows_what_certificates_say(
    slimctl: Callable[..., tuple[int, str, str]], authority: Authority
) -> None:
    certificate, _ = authority.issue("a", "10.77.1.0/24", "fd00::/64")
    code, output, _ = slimctl("pki", "show", certificate, authority.certificate)
    assert code == 0
    assert "networks:    10.77.1.0/24, fd00::/64" in output
    assert "subject:     CN=Test authority" in output
    code, output, _ = slimctl("pki", "show", "--json", certificate, authority.certificate)
    assert code == 0
    shown = json.loads(output)
    assert shown["version"] == 1
    host, root = shown["certificates"]
    assert (host["kind"], host["host"], host["networks"]) == (
        "host",
        "a",
        ["10.77.1.0/24", "fd00::/64"],
    )
    assert (root["kind"], root["host"], root["networks"]) == ("authority", "", [])
    assert host["file"] == str(certificate)
    assert len(host["fingerprint"]) == 64
    assert host["not_before"] < host["not_after"]
