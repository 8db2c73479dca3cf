"""Prefix-cache salts: requests find each other's blocks only if theirs are equal.

A policy that makes a prompt's keys depend on it adds a salt of its own (`Policy.salt`). Those lie in a space that no
client can name: ours begin with OURS, and what a client sends that begins with a NUL gets THEIRS in front.
"""

OURS = "\0kvserve\0"
THEIRS = "\0client\0"


def salted(client: str | None, policy: str | None) -> str | None:
    """The engine's salt of a request, from what its client sent and what its policy adds."""
    theirs = f"{THEIRS}{client}" if client is not None and client.startswith("\0") else client
    return theirs if policy is None else f"{OURS}{policy}\0{theirs or ''}"


def unsalted(salt: str | None, policy: str | None) -> str | None:
    """The engine's salt of the same request without its policy."""
    own = f"{OURS}{policy}\0"
    if policy is None or salt is None or not salt.startswith(own):
        return salt
    return salt.removeprefix(own) or None
