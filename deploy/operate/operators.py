"""The file of operators' keys: lines `NAME KEY`, in the format of the service's API keys and without options."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from deploy.errors import Refused
from service.contract import keys_file, regular_file

__all__ = ["operator_of"]


def operator_of(path: Path, key: str) -> str | None:
    """Return the name of the operator whose key it is, None for a wrong key.

    Its digest is compared with all of the file, each in constant time. Raises Refused if operating is off: the file is
    missing or damaged, or not its owner's alone.
    """
    try:
        found = path.stat()
        keys = keys_file.parse(regular_file.read(path, follow=True))
    except FileNotFoundError:
        raise Refused(f"{path} does not exist", hint="it has a line `NAME KEY` for each operator") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {getattr(error, 'strerror', None) or error}", hint="see SECURITY.md") from None
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o077:
        raise Refused(f"{path} is not its owner's alone", hint=f"chmod 600 {path}")
    digest = keys_file.digest_of(key.encode(errors="replace"))
    names = [one.name for one in keys.values() if hmac.compare_digest(one.digest, digest)]
    return names[0] if names else None
