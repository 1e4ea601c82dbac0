"""Files that nobody but their owner may read: secrets, tokens, keys and certificates, as the daemon wants them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import trustme


def private_file(path: Path, text: str) -> str:
    """Its path, as a configuration has it."""
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def tokens_file(path: Path, *lines: tuple[str, str, str]) -> str:
    """The same of a tokens file. `lines`: name, roles, token."""
    return private_file(
        path, "".join(f"{name}:{roles}:{sha256(token.encode()).hexdigest()}\n" for name, roles, token in lines)
    )


def pem_file(path: Path, *blobs: trustme.Blob) -> str:
    """The same of a certificate, its chain or its key."""
    return private_file(path, "".join(blob.bytes().decode() for blob in blobs))
