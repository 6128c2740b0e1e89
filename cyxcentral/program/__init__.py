"""The escrow program: its source (escrow.c), the linker that makes it (link.py), and the built program itself.

`python -m cyxcentral.program` builds it again. The bytes are part of what a client trusts, so they are
pinned in cyxnet/escrow.py.
"""

import hashlib
from pathlib import Path

from cyxcore.errors import CyxError
from cyxnet.escrow import PROGRAM_SHA256

FOLDER = Path(__file__).parent
SHA256 = PROGRAM_SHA256


class ProgramError(CyxError):
    """The program is not the one that was built, or cannot be built here."""

    code = "program_unavailable"


def program() -> bytes:
    """The built program. Raises ProgramError when the file is not the one that is pinned."""
    path = FOLDER / "escrow.so"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"expected the escrow program at {path}, got: {error}; install cyx again") from None
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ProgramError(f"expected the program {SHA256} at {path}, got {found}; install cyx again")
    return data
