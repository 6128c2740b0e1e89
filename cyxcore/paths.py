"""Names of files that people give: what is no file is refused before it is opened, for who opens a pipe waits for ever.

It imports nothing that takes time.
"""

import errno
import os
import stat
from pathlib import Path

from cyxcore.errors import FormatError

LONGEST_SHOWN = 120  # letters of a name in a message
OF_THE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)  # another one would do


def shown(path: str | os.PathLike[str]) -> str:
    """A name as a message has it: no longer than a line."""
    text = os.fspath(path)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]}…{text[-LONGEST_SHOWN // 4 :]}"


def check_file(path: str | os.PathLike[str], what: str = "a model file") -> Path:
    """The path, when it is a file that is not empty and may be read, or a folder NAME.cyxmodel as CyxWiz wrote them.

    Raises FormatError, which says what was expected and what is there.
    """
    name, found = shown(path), Path(path)
    try:
        held = found.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{name}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{name!r}: expected {what}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(held.st_mode):
        if found.suffix.lower() != ".cyxmodel":
            raise FormatError(f"{name}: expected {what}, this is a folder")
    elif not stat.S_ISREG(held.st_mode):
        raise FormatError(f"{name}: expected {what}, this is a pipe or a device")
    elif not held.st_size:
        raise FormatError(f"{name}: expected {what}, this one is empty")
    if not os.access(found, os.R_OK):
        raise FormatError(f"{name}: expected {what}, this one may not be read; look at its permissions")
    return found
