"""Links one object file of `clang -target bpf` into the shared object that a Solana loader takes. Pure.

There is no linker for this target outside Solana's own tools, and little to link: one file, constants, and calls of the
runtime, which are imported by name. What comes out is sBPF version 0, which every cluster takes: an ELF file with
.text and .rodata, and a dynamic section that tells the loader which instructions call which import.

Formats: the ELF-64 object file format; R_BPF_64_64 and R_BPF_64_32 as LLVM defines them; sBPF's loader, which reads
addresses from 0x1_0000_0000 on as the file itself.
"""

import struct
from typing import NamedTuple

from cyxcore.errors import CyxError

EM_BPF = 247
ET_REL, ET_DYN = 1, 3
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_DYNAMIC, SHT_NOBITS, SHT_REL, SHT_DYNSYM = 1, 2, 3, 6, 8, 9, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PT_LOAD, PT_DYNAMIC = 1, 2
PF_X, PF_W, PF_R = 1, 2, 4
DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_REL, DT_RELSZ, DT_RELENT = 5, 6, 10, 17, 18, 19
R_BPF_64_64, R_BPF_64_32 = 1, 10  # the address in a pair of instructions; the target of a call
STB_GLOBAL = 1
INSTRUCTION_BYTES = 8
FILE_ADDRESS = 1 << 32  # where the program sees its own file
ENTRY = "entrypoint"
IMPORT_PREFIX = "sol_"  # a call of anything else is a function that the compiler expected from a library

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELOCATION = struct.Struct("<QQ")
DYNAMIC = struct.Struct("<QQ")
IDENTITY = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1


class LinkError(CyxError):
    """The object file holds something that this linker does not know, or lacks something that it needs."""

    code = "link_failed"


class Section(NamedTuple):
    name: str
    kind: int
    flags: int
    link: int
    info: int
    data: bytes


class Symbol(NamedTuple):
    name: str
    section: int  # 0: not here, an import
    value: int


class Code(NamedTuple):
    """What an object file comes to: instructions, constants, and the places that depend on where things will lie."""

    text: bytes
    constants: bytes
    entry: int  # offset in text
    addresses: list[tuple[int, int]]  # (offset in text of a pair of instructions, offset in constants it means)
    calls: list[tuple[int, str]]  # (offset in text of a call, name of the import)


def link(object_file: bytes) -> bytes:
    """The program as a loader takes it. The same object gives the same bytes. Raises LinkError."""
    return write_program(read_object(object_file))


# Reading.


def read_sections(data: bytes) -> list[Section]:
    if len(data) < FILE_HEADER.size or data[:4] != IDENTITY[:4]:
        raise LinkError(f"expected an ELF object file, got {data[:4]!r}; is it what clang -target bpf -c wrote?")
    header = FILE_HEADER.unpack_from(data)
    kind, machine, sections_at, count, names = header[1], header[2], header[6], header[12], header[13]
    if (kind, machine) != (ET_REL, EM_BPF):
        raise LinkError(f"expected an object file (type {ET_REL}) for machine {EM_BPF}, got {kind} for {machine}")
    rows = [SECTION_HEADER.unpack_from(data, sections_at + SECTION_HEADER.size * i) for i in range(count)]
    contents = [b"" if row[1] == SHT_NOBITS else data[row[4] : row[4] + row[5]] for row in rows]
    for row in rows:
        if row[1] == SHT_NOBITS and row[5]:
            raise LinkError("expected no variables, got a .bss section: a program has no memory of its own")
    return [
        Section(text_at(contents[names], row[0]), row[1], row[2], row[6], row[7], content)
        for row, content in zip(rows, contents, strict=True)
    ]


def text_at(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


def read_object(data: bytes) -> Code:
    sections = read_sections(data)
    text, constants = b"", b""
    places: dict[int, int] = {}  # section -> where it begins, in text or in constants
    for number, section in enumerate(sections):
        if section.kind != SHT_PROGBITS or not section.flags & SHF_ALLOC:
            continue
        if section.flags & SHF_WRITE:
            raise LinkError(f"expected constants only, got the writable section {section.name}")
        if section.flags & SHF_EXECINSTR:
            if section.data and text:
                raise LinkError(f"expected one section of code, got another: {section.name}")
            places[number], text = 0, text or section.data
        else:
            places[number] = len(constants)
            constants += padded(section.data)
    symbols = read_symbols(sections)
    entry = [symbol.value for symbol in symbols if symbol.name == ENTRY and symbol.section]
    if not entry:
        raise LinkError(f"expected a function {ENTRY}, got none")
    code = Code(text, constants, entry[0], [], [])
    for section in sections:
        if section.kind == SHT_REL and section.info in places:
            read_relocations(section, sections[section.info], symbols, places, code)
    return code


def read_symbols(sections: list[Section]) -> list[Symbol]:
    table = next((section for section in sections if section.kind == SHT_SYMTAB), None)
    if table is None:
        raise LinkError("expected a table of symbols, got none")
    names = sections[table.link].data
    return [
        Symbol(text_at(names, name), section, value) for name, _, _, section, value, _ in SYMBOL.iter_unpack(table.data)
    ]


def read_relocations(
    section: Section, target: Section, symbols: list[Symbol], places: dict[int, int], code: Code
) -> None:
    for at, info in RELOCATION.iter_unpack(section.data):
        kind, symbol = info & 0xFFFFFFFF, symbols[info >> 32]
        if not target.flags & SHF_EXECINSTR:
            raise LinkError(f"expected constants without addresses, got one in {target.name} at {at:#x}")
        if kind == R_BPF_64_32 and symbol.section == 0:
            if not symbol.name.startswith(IMPORT_PREFIX):
                raise LinkError(f"expected calls of {IMPORT_PREFIX}* only, got {symbol.name}: there is no C library")
            code.calls.append((at, symbol.name))
        elif kind == R_BPF_64_64 and symbol.section in places:
            addend = int.from_bytes(code.text[at + 4 : at + 8], "little", signed=True)
            code.addresses.append((at, places[symbol.section] + symbol.value + addend))
        else:
            raise LinkError(f"cannot link relocation {kind} to {symbol.name or 'a section'} at {at:#x}")


# Writing.


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def write_program(code: Code) -> bytes:
    segments = 3
    text_at = FILE_HEADER.size + SEGMENT_HEADER.size * segments
    constants_at = text_at + len(code.text)
    dynamic_at = constants_at + len(code.constants)
    imports = sorted({name for _, name in code.calls})
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in imports)
    offsets = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name in imports]
    symbols = bytes(SYMBOL.size) + b"".join(SYMBOL.pack(at, STB_GLOBAL << 4, 0, 0, 0, 0) for at in offsets)
    relocations = b"".join(
        RELOCATION.pack(text_at + at, (imports.index(name) + 1) << 32 | R_BPF_64_32) for at, name in code.calls
    )
    entries = 7
    symbols_at = dynamic_at + DYNAMIC.size * entries
    strings_at = symbols_at + len(symbols)
    relocations_at = strings_at + len(padded(strings))
    end = relocations_at + len(relocations)
    dynamic = b"".join(
        DYNAMIC.pack(*entry)
        for entry in (
            (DT_SYMTAB, symbols_at),
            (DT_STRTAB, strings_at),
            (DT_STRSZ, len(strings)),
            (DT_REL, relocations_at),
            (DT_RELSZ, len(relocations)),
            (DT_RELENT, RELOCATION.size),
            (0, 0),
        )
    )
    parts = [
        # name, kind, flags, offset, content, section its links go to, size of an entry
        (".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, text_at, placed(code, constants_at), 0, 0),
        (".rodata", SHT_PROGBITS, SHF_ALLOC, constants_at, code.constants, 0, 0),
        (".dynamic", SHT_DYNAMIC, SHF_ALLOC | SHF_WRITE, dynamic_at, dynamic, 5, DYNAMIC.size),
        (".dynsym", SHT_DYNSYM, SHF_ALLOC, symbols_at, symbols, 5, SYMBOL.size),
        (".dynstr", SHT_STRTAB, SHF_ALLOC, strings_at, padded(strings), 0, 0),
        (".rel.dyn", SHT_REL, SHF_ALLOC, relocations_at, relocations, 4, RELOCATION.size),
    ]
    titles = b"\0" + b"".join(part[0].encode() + b"\0" for part in parts) + b".shstrtab\0"
    body = b"".join(part[4] for part in parts) + padded(titles)
    rows = [bytes(SECTION_HEADER.size)]
    for name, kind, flags, at, content, linked, size in parts:
        title = titles.index(name.encode() + b"\0")
        rows.append(SECTION_HEADER.pack(title, kind, flags, at, at, len(content), linked, 0, 8, size))
    title = titles.index(b".shstrtab\0")
    rows.append(SECTION_HEADER.pack(title, SHT_STRTAB, 0, 0, end, len(titles), 0, 0, 1, 0))
    head = FILE_HEADER.pack(
        IDENTITY, ET_DYN, EM_BPF, 1, text_at + code.entry, FILE_HEADER.size, end + len(padded(titles)), 0,
        FILE_HEADER.size, SEGMENT_HEADER.size, segments, SECTION_HEADER.size, len(rows), len(rows) - 1,
    )  # fmt: skip
    return (
        head
        + segment(PT_LOAD, PF_R | PF_X, text_at, dynamic_at)
        + segment(PT_LOAD, PF_R | PF_W, dynamic_at, end)
        + segment(PT_DYNAMIC, PF_R | PF_W, dynamic_at, symbols_at)
        + body
        + b"".join(rows)
    )


def segment(kind: int, flags: int, start: int, end: int) -> bytes:
    return SEGMENT_HEADER.pack(kind, flags, start, start, start, end - start, end - start, 8)


def placed(code: Code, constants_at: int) -> bytes:
    """The instructions, now that it is known where constants lie. Imports are left to the loader."""
    text = bytearray(code.text)
    for at, constant in code.addresses:
        address = FILE_ADDRESS + constants_at + constant
        struct.pack_into("<I", text, at + 4, address & 0xFFFFFFFF)
        struct.pack_into("<I", text, at + INSTRUCTION_BYTES + 4, address >> 32)
    for at, _ in code.calls:
        text[at + 1] &= 0x0F  # a call of an import names no source register
        struct.pack_into("<i", text, at + 4, -1)
    return bytes(text)
