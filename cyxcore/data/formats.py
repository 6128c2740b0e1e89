"""Which format a file has, by its name and by its first bytes."""

import os
import stat

from cyxcore.data.checks import Path, defect, shown
from cyxcore.spec import DataFormat

BY_SUFFIX: dict[str, DataFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npz": "npz",
}

# Common formats that do not travel, and what to do with them.
REMEDIES: dict[str, str] = {
    ".npy": "pack the inputs and labels together: cyxcore.data.pack('x.npy', 'y.npy', 'data.npz')",
    ".json": "write one JSON object per line and name the file .jsonl",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
    ".xlsx": "export the sheet as CSV",
    ".xls": "export the sheet as CSV",
    ".pkl": "pickles can run code and are never read; write Parquet or NPZ",
    ".pt": "pickles can run code and are never read; write Parquet or NPZ",
    ".feather": "write Parquet instead",
    ".arrow": "write Parquet instead",
}

UTF16 = "UTF-16 text"

# First bytes -> (what it is, the format to declare, if it can travel).
MAGIC: tuple[tuple[bytes, str, DataFormat | None], ...] = (
    (b"PAR1", "a Parquet file", "parquet"),
    (b"PK\x03\x04", "a zip archive", "npz"),
    (b"PK\x05\x06", "an empty zip archive", "npz"),
    (b"\x93NUMPY", "an NPY file", None),
    (b"\x1f\x8b", "a gzip file", None),
    (b"\xff\xfe", UTF16, None),
    (b"\xfe\xff", UTF16, None),
)
BINARY: frozenset[DataFormat] = frozenset({"parquet", "npz"})


def detect_format(path: Path) -> DataFormat:
    """The format a file's name says, or, if the name says nothing, its first bytes.

    Raises DataError for a missing file, a folder, and anything that does not travel.
    """
    first = read_start(path)
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in REMEDIES:
        raise defect(path, "CSV, Parquet, JSON lines or NPZ", f"a {suffix} file", REMEDIES[suffix])
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    for magic, what, data_format in MAGIC:
        if first.startswith(magic):
            if data_format is None:
                raise defect(path, "CSV, Parquet, JSON lines or NPZ", what, "convert it to one of these")
            return data_format
    if first.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return "jsonl"
    raise defect(
        path,
        f"a name ending in {', '.join(BY_SUFFIX)}",
        shown(suffix) if suffix else "a name without an ending",
        "rename the file or set data.format",
    )


def check_start(path: Path, data_format: DataFormat) -> None:
    """Raises DataError if the file is missing, empty, no plain file, or plainly of another format."""
    first = read_start(path)
    if not first:
        raise defect(path, "a dataset", "an empty file (0 bytes)", "check that it was written completely")
    found = next((entry for entry in MAGIC if first.startswith(entry[0])), None)
    if found is not None and found[2] != data_format:
        _, what, actual = found
        if what == UTF16 and data_format not in BINARY:
            raise defect(path, "UTF-8 text", what, "save the file as UTF-8")
        remedy = f'set data.format = "{actual}"' if actual else "convert it to CSV, Parquet, JSON lines or NPZ"
        raise defect(path, f"{data_format} data", what, remedy)
    if found is None and data_format in BINARY:
        raise defect(path, f"{data_format} data", f"a file that starts with {first!r}", "check data.format")


def read_start(path: Path) -> bytes:
    """The first 8 bytes of a plain, readable file. Raises DataError; never waits on a pipe or device."""
    try:
        mode = os.stat(path).st_mode
        first = b""
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                first = file.read(8)
    except FileNotFoundError:
        raise defect(path, "a file", "nothing by this name", "check data.path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        remedy = "check the path and its permissions"
        raise defect(path, "a readable file", type(error).__name__, remedy) from None
    if stat.S_ISDIR(mode):
        remedy = "for images, one folder per class, use cyxcore.data.pack_images(folder, size, 'data.npz')"
        raise defect(path, "a file", "a folder", remedy)
    if not stat.S_ISREG(mode):
        raise defect(path, "a plain file", "a device, pipe or socket", "copy the data into a file")
    return first
