"""The grammars of names, label keys, label values and port names (apimachinery util/validation).

A function gives what is wrong with a text, or nothing.
"""

from __future__ import annotations

import re

MAX_SUBDOMAIN = 253
MAX_LABEL = 63
MAX_PORT_NAME = 15

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_PORT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LETTER = re.compile(r"[a-z]")


def check_subdomain(text: str) -> str:
    """DNS-1123 subdomain: names of policies, prefixes of label keys."""
    if len(text) > MAX_SUBDOMAIN:
        return f"has more than {MAX_SUBDOMAIN} characters"
    if not _DNS_SUBDOMAIN.fullmatch(text):
        return "must be of a-z, 0-9, '-' and '.', and begin and end with a letter or digit"
    return ""


def check_dns_label(text: str) -> str:
    """DNS-1123 label: names of namespaces."""
    if len(text) > MAX_LABEL:
        return f"has more than {MAX_LABEL} characters"
    if not _DNS_LABEL.fullmatch(text):
        return "must be of a-z, 0-9 and '-', and begin and end with a letter or digit"
    return ""


def check_label_key(text: str) -> str:
    """Qualified name: `name` or `prefix/name`."""
    prefix, slash, name = text.rpartition("/")
    if slash and (not prefix or check_subdomain(prefix)):
        return "the part before '/' must be a DNS name in lower case"
    if not name or len(name) > MAX_LABEL:
        return f"must have 1 to {MAX_LABEL} characters" + (" after '/'" if slash else "")
    if not _QUALIFIED.fullmatch(name):
        return (
            "must be of letters, digits, '-', '_' and '.', and begin and end with a letter or digit"
        )
    return ""


def check_label_value(text: str) -> str:
    if len(text) > MAX_LABEL:
        return f"has more than {MAX_LABEL} characters"
    if text and not _QUALIFIED.fullmatch(text):
        return (
            "must be of letters, digits, '-', '_' and '.', and begin and end with a letter or digit"
        )
    return ""


def check_port_name(text: str) -> str:
    """IANA service name (RFC 6335, 5.1), in lower case."""
    if not text or len(text) > MAX_PORT_NAME:
        return f"must have 1 to {MAX_PORT_NAME} characters"
    if not _PORT_NAME.fullmatch(text) or not _LETTER.search(text):
        return "must be of a-z, 0-9 and single '-' inside, with a letter among them"
    return ""
