NOT_FINITE: int
BEYOND_63_BITS: int

def strange(payload: bytes) -> int: ...
