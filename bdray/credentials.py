"""Passwords in URIs: taken out of everything that is shown or stored.

Whatever opens a server or a bucket is given the whole URI; messages, files and argument lists get `public` or
`without_password` of it. `public` takes any text, so it is also the net below: where text leaves the program (errors,
logs, records) it masks what a library may have put into its message.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

HIDDEN = "***"

# A slash in a password should have been percent-encoded; unless it looks like a port, it is hidden all the same.
_IN_HOST = re.compile(r"(?<=://)([^\s/?#:@'\"]*):([^\s/?#'\"]*|(?!\d+/)[^\s'\"]*)@")
_IN_QUERY = re.compile(
    r"(?<=[?&])(access_key|client_secret|password|sas_token|secret_key|session_token|sig|token)=([^\s&#'\"]*)"
)


def public(text: str, uri: str = "") -> str:
    """A URI, or any text, with the passwords of all URIs in it as `***`: `http://user:***@host`.

    Args:
        uri: what a library's message is about: it may name the password decoded.
    """
    if decoded := unquote(urlsplit(uri).password or "") if "@" in uri else "":
        text = text.replace(f":{decoded}@", f":{HIDDEN}@")
    return _IN_QUERY.sub(rf"\1={HIDDEN}", _IN_HOST.sub(rf"\1:{HIDDEN}@", text))


def without_password(uri: str) -> str:
    """The URI as files keep it: the user stays, secrets go."""
    return re.sub(r"[?&](?=$|&)", "", _IN_QUERY.sub("", _IN_HOST.sub(r"\1@", uri)))


def without_login(uri: str) -> str:
    """The URI with neither user nor secrets, for a client that finds both by itself."""
    return re.sub(r"(?<=://)[^\s/?#@]*@", "", without_password(uri))


def server_of(uri: str) -> str:
    """No more of an address than its server: what follows may be a secret, as with a chat's webhook."""
    parts = urlsplit(uri)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def is_hidden(uri: str) -> bool:
    """Whether the URI was once shown, so that its secrets are gone."""
    return any(match[2] == HIDDEN for pattern in (_IN_HOST, _IN_QUERY) for match in pattern.finditer(uri))
