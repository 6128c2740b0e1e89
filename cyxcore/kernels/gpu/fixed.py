"""The kernels that are written by hand. Arrays are C-contiguous; sizes that never change in a plan are constants.

`faults` is one int32 per op of table.FAULTY: a kernel that meets an index it has no element for writes 1 there,
reads something harmless instead, and the caller raises DataError when it next waits for the device.
"""

import triton
import triton.language as tl

from cyxcore.kernels.gpu.helpers import div, exp, log, maximum, minimum, plus, times

SUM, MAX, MIN, PROD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def reduce(
    x, out, outputs, n, chunk, inner, count, HOW: tl.constexpr, MEAN: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """(outer, n, inner) -> (outer, splits, inner): split s has rows s * chunk and up. MEAN: divided by count.

    The order of additions depends on the shape alone: lanes ascending, then a tree over the lanes.
    """
    split = tl.program_id(1)
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < outputs
    outer, i = j // inner, j % inner
    base = x + outer * n * inner + i
    low = split * chunk
    high = tl.minimum(low + chunk, n)
    k = low + tl.arange(0, BN)
    if HOW == SUM:
        total = tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None] & (k < high)[None, :], other=0)
        if x.dtype.element_ty == tl.uint8:
            total = total.to(tl.int32)
        for k0 in range(low + BN, high, BN):
            k = k0 + tl.arange(0, BN)
            total += tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None] & (k < high)[None, :], other=0)
        result = tl.reduce(total, 1, plus)
        if MEAN:
            result = div(result, tl.full([BJ], count, result.dtype))
    elif HOW == PROD:
        total = tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None] & (k < high)[None, :], other=1)
        if x.dtype.element_ty == tl.uint8:
            total = total.to(tl.int32)
        for k0 in range(low + BN, high, BN):
            k = k0 + tl.arange(0, BN)
            total *= tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None] & (k < high)[None, :], other=1)
        result = tl.reduce(total, 1, times)
    else:  # a place beyond the end reads the last row again, which changes nothing
        k = tl.minimum(k, high - 1)
        best = tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None], other=0)
        for k0 in range(low + BN, high, BN):
            k = tl.minimum(k0 + tl.arange(0, BN), high - 1)
            v = tl.load(base[:, None] + k[None, :] * inner, mask=inside[:, None], other=0)
            best = maximum(best, v) if HOW == MAX else minimum(best, v)
        result = tl.reduce(best, 1, maximum) if HOW == MAX else tl.reduce(best, 1, minimum)
    place = (outer * tl.num_programs(1) + split) * inner + i
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _better(a, i, b, j):
    """The larger of two, NaN above all, the first among equals: with its place."""
    take_b = (b > a) | ((b != b) & (a == a)) | (((a == b) | ((a != a) & (b != b))) & (j < i))
    return tl.where(take_b, b, a), tl.where(take_b, j, i)


@triton.jit
def argmax(x, out, outputs, n, inner, BJ: tl.constexpr, BN: tl.constexpr):
    """(outer, n, inner) -> (outer, inner): the place of the first maximum."""
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < outputs
    base = x + (j // inner) * n * inner + j % inner
    place = tl.minimum(tl.arange(0, BN), n - 1)[None, :] + tl.zeros([BJ, BN], tl.int32)
    best = tl.load(base[:, None] + place * inner, mask=inside[:, None], other=0)
    for k0 in range(BN, n, BN):
        k = tl.minimum(k0 + tl.arange(0, BN), n - 1)[None, :] + tl.zeros([BJ, BN], tl.int32)
        v = tl.load(base[:, None] + k * inner, mask=inside[:, None], other=0)
        best, place = _better(best, place, v, k)
    _, result = tl.reduce((best, place), 1, _better)
    tl.store(out + j, result.to(tl.int64), mask=inside)


@triton.jit
def cumulative(x, out, outputs, n, inner, HOW: tl.constexpr, BJ: tl.constexpr):
    """Sums or products over the middle axis of (outer, n, inner), each line from its first element to its last: no
    other order has the bits of the host.
    """
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < outputs
    at = (j // inner) * n * inner + j % inner
    total = tl.load(x + at, mask=inside, other=0)
    tl.store(out + at, total, mask=inside)
    for _ in range(1, n):
        at += inner
        value = tl.load(x + at, mask=inside, other=0)
        total = total * value if HOW == PROD else total + value
        tl.store(out + at, total, mask=inside)


@triton.jit
def _row_statistics(base, n, inner, inside, BJ: tl.constexpr, BN: tl.constexpr):
    """(maximum, sum of exp(x - maximum)) of each row. Lanes are added up last: in the loop, Triton 3.6 cannot."""
    dtype = base.dtype.element_ty
    tops = tl.full([BJ, BN], -float("inf"), dtype)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        tops = maximum(tops, tl.load(base[:, None] + k[None, :] * inner, mask=here, other=-float("inf")))
    top = tl.reduce(tops, 1, maximum)
    totals = tl.zeros([BJ, BN], dtype)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        v = tl.load(base[:, None] + k[None, :] * inner, mask=here, other=-float("inf"))
        totals += tl.where(here, exp(v - top[:, None]), 0.0)
    return top, tl.reduce(totals, 1, plus)


@triton.jit
def softmax(x, out, outputs, n, inner, LOG: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr):
    """Over the middle axis of (outer, n, inner)."""
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < outputs
    start = (j // inner) * n * inner + j % inner
    top, total = _row_statistics(x + start, n, inner, inside, BJ, BN)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        at = start[:, None] + k[None, :] * inner
        v = tl.load(x + at, mask=here, other=0) - top[:, None]
        result = v - log(total)[:, None] if LOG else div(exp(v), tl.zeros_like(v) + total[:, None])
        tl.store(out + at, result, mask=here)


@triton.jit
def softmax_grad(g, y, out, outputs, n, inner, LOG: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr):
    """y (g - sum(g y)) of softmax y, or g - e**y sum(g) of log_softmax y, over the middle axis of (outer, n, inner)."""
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < outputs
    start = (j // inner) * n * inner + j % inner
    totals = tl.zeros([BJ, BN], out.dtype.element_ty)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        at = start[:, None] + k[None, :] * inner
        term = tl.load(g + at, mask=here, other=0)
        totals += term if LOG else term * tl.load(y + at, mask=here, other=0)
    total = tl.reduce(totals, 1, plus)[:, None]
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        at = start[:, None] + k[None, :] * inner
        upstream, own = tl.load(g + at, mask=here, other=0), tl.load(y + at, mask=here, other=0)
        tl.store(out + at, upstream - exp(own) * total if LOG else own * (upstream - total), mask=here)


@triton.jit
def _label(labels, j, inside, n, fault):
    label = tl.load(labels + j, mask=inside, other=0)
    wrong = inside & ((label < 0) | (label >= n))
    tl.store(fault + j * 0, 1, mask=wrong)
    return tl.where(wrong, 0, label)


@triton.jit
def cross_entropy(x, labels, out, fault, rows, n, inner, BJ: tl.constexpr, BN: tl.constexpr):
    """Per label of logits (rows / inner, n, inner): log(sum(exp(x))) - x[label]."""
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < rows
    base = x + j // inner * n * inner + j % inner
    top, total = _row_statistics(base, n, inner, inside, BJ, BN)
    label = _label(labels, j, inside, n, fault)
    picked = tl.load(base + label * inner, mask=inside, other=0)
    tl.store(out + j, log(total) - (picked - top), mask=inside)


@triton.jit
def cross_entropy_grad(g, x, labels, out, fault, rows, n, inner, BJ: tl.constexpr, BN: tl.constexpr):
    """(softmax(x) - one_hot(label)) * g per label."""
    j = tl.program_id(0).to(tl.int64) * BJ + tl.arange(0, BJ)
    inside = j < rows
    start = j // inner * n * inner + j % inner
    top, total = _row_statistics(x + start, n, inner, inside, BJ, BN)
    label = _label(labels, j, inside, n, fault)
    scale = tl.load(g + j, mask=inside, other=0)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        here = inside[:, None] & (k < n)[None, :]
        at = start[:, None] + k[None, :] * inner
        v = tl.load(x + at, mask=here, other=0) - top[:, None]
        share = div(exp(v), tl.zeros_like(v) + total[:, None])
        share = tl.where(label[:, None] == k[None, :], share - 1, share)
        tl.store(out + at, share * scale[:, None], mask=here)


# gather and scatter -------------------------------------------------------------------------------


@triton.jit
def _wrapped(index, size, inside, fault):
    """Negative indices count from the end."""
    wrong = inside & ((index < -size) | (index >= size))
    tl.store(fault + index * 0, 1, mask=wrong)
    return tl.where(wrong, 0, tl.where(index < 0, index + size, index)).to(tl.int64)


@triton.jit
def take(x, indices, out, fault, total, count, size, inner, BLOCK: tl.constexpr):
    """out[o, j, i] = x[o, indices[j], i]."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < total
    row = e // inner
    index = _wrapped(tl.load(indices + row % count, mask=inside, other=0), size, inside, fault)
    v = tl.load(x + ((row // count) * size + index) * inner + e % inner, mask=inside)
    tl.store(out + e, v, mask=inside)


@triton.jit
def take_along(x, indices, out, fault, total, count, size, inner, BLOCK: tl.constexpr):
    """out[o, j, i] = x[o, indices[o, j, i], i]."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < total
    index = _wrapped(tl.load(indices + e, mask=inside, other=0), size, inside, fault)
    v = tl.load(x + (e // inner // count * size + index) * inner + e % inner, mask=inside)
    tl.store(out + e, v, mask=inside)


@triton.jit
def take_grad(g, indices, out, fault, count, size, inner, tiles, BV: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr):
    """out[o, v, i] = sum of g[o, j, i] over j with indices[j] == v, in blocks of ascending j: no atomics.

    A block of j that no row of this program asks for costs one comparison.
    """
    o = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) // tiles * BV + tl.arange(0, BV)
    i = tl.program_id(0) % tiles * BI + tl.arange(0, BI)
    total = tl.zeros([BV, BI], g.dtype.element_ty)
    for j0 in range(0, count, BT):
        j = j0 + tl.arange(0, BT)
        inside = j < count
        index = _wrapped(tl.load(indices + j, mask=inside, other=0), size, inside, fault)
        wanted = (index[None, :] == v[:, None]) & inside[None, :]
        if tl.max(wanted.to(tl.int32)) > 0:
            rows = tl.load(
                g + (o * count + j)[:, None] * inner + i[None, :], mask=inside[:, None] & (i < inner)[None, :], other=0
            )
            total += tl.sum(tl.where(wanted[:, :, None], rows[None, :, :], 0), 1).to(total.dtype)
    at = (o * size + v)[:, None] * inner + i[None, :]
    tl.store(out + at, total, mask=(v < size)[:, None] & (i < inner)[None, :])


@triton.jit
def one_hot(indices, out, fault, total, depth, BLOCK: tl.constexpr):
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < total
    index = tl.load(indices + e // depth, mask=inside, other=0)
    tl.store(fault + e * 0, 1, mask=inside & ((index < 0) | (index >= depth)))
    tl.store(out + e, (index == e % depth).to(tl.float32), mask=inside)


@triton.jit
def uniform(key, out, total, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """float32 multiples of 2**-24: the words of kernels/philox.py, four a block."""
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    seed, step = tl.load(key), tl.load(key + 1)
    zero = tl.zeros([BLOCK], tl.uint32)
    low, high = (step & 0xFFFFFFFF).to(tl.uint32), (step >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, b.to(tl.uint32), zero + STREAM, zero + low, zero + high)
    tl.store(out + 4 * b, (w0 >> 8).to(tl.float32) * (2.0**-24), mask=4 * b < total)
    tl.store(out + 4 * b + 1, (w1 >> 8).to(tl.float32) * (2.0**-24), mask=4 * b + 1 < total)
    tl.store(out + 4 * b + 2, (w2 >> 8).to(tl.float32) * (2.0**-24), mask=4 * b + 2 < total)
    tl.store(out + 4 * b + 3, (w3 >> 8).to(tl.float32) * (2.0**-24), mask=4 * b + 3 < total)


# products ------------------------------------------------------------------------------------------


@triton.jit
def whole_matmul(x, y, out, m, n, k, xm, xk, yk, yn, xb, yb, BM: tl.constexpr, BN: tl.constexpr):
    """Matrices of integers, wrapping as NumPy's do. Strides in elements: x* of x, y* of y, *b of the batch."""
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], out.dtype.element_ty)
    for c in range(0, k):
        left = tl.load(x + b * xb + i * xm + c * xk, mask=i < m, other=0)
        right = tl.load(y + b * yb + c * yk + j * yn, mask=j < n, other=0)
        total += left[:, None] * right[None, :]
    tl.store(out + (b * m + i)[:, None] * n + j[None, :], total, mask=(i < m)[:, None] & (j < n)[None, :])


@triton.jit
def conv2d(
    x, w, out, rows,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As a product: rows (n, oy, ox) by columns (output channel), summed over (c, ky, kx)."""
    CG: tl.constexpr = C // GROUPS
    OG: tl.constexpr = O // GROUPS
    K: tl.constexpr = CG * KH * KW
    group = tl.program_id(2)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    n, oy, ox = (m // (OH * OW)).to(tl.int64), m // OW % OH, m % OW
    total = tl.zeros([BM, BN], x.dtype.element_ty)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        c, ky, kx = k // (KH * KW), k // KW % KH, k % KW
        iy = oy[:, None] * SH - PH + ky[None, :] * DH
        ix = ox[:, None] * SW - PW + kx[None, :] * DW
        inside = (m < rows)[:, None] & (k < K)[None, :] & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        at = ((n[:, None] * C + group * CG + c[None, :]) * H + iy) * W + ix
        a = tl.load(x + at, mask=inside, other=0)
        b = tl.load(w + (group * OG + o)[None, :] * K + k[:, None], mask=(k < K)[:, None] & (o < OG)[None, :], other=0)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    at = ((n[:, None] * O + group * OG + o[None, :]) * OH + oy[:, None]) * OW + ox[:, None]
    tl.store(out + at, total, mask=(m < rows)[:, None] & (o < OG)[None, :])


@triton.jit
def conv2d_grad_input(
    g, w, out, rows,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As a product: rows (n, y, x) by columns (input channel), summed over (output channel, ky, kx)."""
    CG: tl.constexpr = C // GROUPS
    OG: tl.constexpr = O // GROUPS
    K: tl.constexpr = OG * KH * KW
    group = tl.program_id(2)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    n, y, x = (m // (H * W)).to(tl.int64), m // W % H, m % W
    total = tl.zeros([BM, BN], g.dtype.element_ty)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        o, ky, kx = k // (KH * KW), k // KW % KH, k % KW
        fy = y[:, None] + PH - ky[None, :] * DH
        fx = x[:, None] + PW - kx[None, :] * DW
        oy, ox = fy // SH, fx // SW
        inside = (m < rows)[:, None] & (k < K)[None, :] & (fy >= 0) & (fx >= 0) & (oy < OH) & (ox < OW)
        inside = inside & (fy % SH == 0) & (fx % SW == 0)
        at = ((n[:, None] * O + group * OG + o[None, :]) * OH + oy) * OW + ox
        a = tl.load(g + at, mask=inside, other=0)
        at = ((group * OG + o)[:, None] * CG + c[None, :]) * (KH * KW) + (k % (KH * KW))[:, None]
        b = tl.load(w + at, mask=(k < K)[:, None] & (c < CG)[None, :], other=0)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    at = ((n[:, None] * C + group * CG + c[None, :]) * H + y[:, None]) * W + x[:, None]
    tl.store(out + at, total, mask=(m < rows)[:, None] & (c < CG)[None, :])


@triton.jit
def conv2d_grad_weight(
    g, x, out, rows, chunk,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As a product: rows (output channel) by columns (c, ky, kx), summed over (n, oy, ox) from split * chunk on.

    out: (splits, O, C / groups, KH, KW), to be summed over its splits.
    """
    CG: tl.constexpr = C // GROUPS
    OG: tl.constexpr = O // GROUPS
    K: tl.constexpr = CG * KH * KW
    group, split = tl.program_id(2) % GROUPS, tl.program_id(2) // GROUPS
    o = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    c, ky, kx = k // (KH * KW), k // KW % KH, k % KW
    total = tl.zeros([BM, BN], g.dtype.element_ty)
    low = split * chunk
    for m0 in range(low, tl.minimum(low + chunk, rows), BK):
        m = m0 + tl.arange(0, BK)
        n, oy, ox = (m // (OH * OW)).to(tl.int64), m // OW % OH, m % OW
        here = (m < rows) & (m < low + chunk)
        at = ((n[None, :] * O + group * OG + o[:, None]) * OH + oy[None, :]) * OW + ox[None, :]
        a = tl.load(g + at, mask=here[None, :] & (o < OG)[:, None], other=0)
        iy = oy[:, None] * SH - PH + ky[None, :] * DH
        ix = ox[:, None] * SW - PW + kx[None, :] * DW
        inside = here[:, None] & (k < K)[None, :] & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        at = ((n[:, None] * C + group * CG + c[None, :]) * H + iy) * W + ix
        b = tl.load(x + at, mask=inside, other=0)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    at = ((split * O + group * OG + o)[:, None]).to(tl.int64) * K + k[None, :]
    tl.store(out + at, total, mask=(o < OG)[:, None] & (k < K)[None, :])


# pooling --------------------------------------------------------------------------------------------


@triton.jit
def pool2d(
    x, out, total,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, MAXIMUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Maximum or mean of each window. Outside the image is -inf or 0."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image, oy, ox = e // (OH * OW), (e // OW % OH).to(tl.int32), (e % OW).to(tl.int32)
    result = tl.full([BLOCK], -float("inf") if MAXIMUM else 0.0, x.dtype.element_ty)
    for ky in range(0, KH):
        for kx in range(0, KW):
            iy, ix = oy * SH - PH + ky, ox * SW - PW + kx
            inside = (e < total) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            v = tl.load(x + (image * H + iy) * W + ix, mask=inside, other=-float("inf") if MAXIMUM else 0.0)
            result = maximum(result, v) if MAXIMUM else result + v
    if not MAXIMUM:
        result = div(result, tl.full([BLOCK], KH * KW, x.dtype.element_ty))
    tl.store(out + e, result, mask=e < total)


@triton.jit
def max_pool2d_grad(
    g, x, out, total,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each place of the image sums the gradients of the windows whose first maximum it is."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image, y, c = e // (H * W), (e // W % H).to(tl.int32), (e % W).to(tl.int32)
    result = tl.zeros([BLOCK], x.dtype.element_ty)
    for dy in range(0, (KH + SH - 1) // SH):
        for dx in range(0, (KW + SW - 1) // SW):
            oy, ox = (y + PH) // SH - dy, (c + PW) // SW - dx
            ky, kx = y + PH - oy * SH, c + PW - ox * SW
            here = (e < total) & (oy >= 0) & (ox >= 0) & (oy < OH) & (ox < OW) & (ky < KH) & (kx < KW)
            best = tl.full([BLOCK], -float("inf"), x.dtype.element_ty)
            first = tl.zeros([BLOCK], tl.int32)
            for wy in range(0, KH):
                for wx in range(0, KW):
                    iy, ix = oy * SH - PH + wy, ox * SW - PW + wx
                    inside = here & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
                    v = tl.load(x + (image * H + iy) * W + ix, mask=inside, other=-float("inf"))
                    more = (v > best) | ((v != v) & (best == best))
                    best, first = tl.where(more, v, best), tl.where(more, wy * KW + wx, first)
            mine = here & (first == ky * KW + kx)
            result += tl.load(g + (image * OH + oy) * OW + ox, mask=mine, other=0)
    tl.store(out + e, result, mask=e < total)


@triton.jit
def avg_pool2d_grad(
    g, out, total,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each place of the image sums the shares of the windows it lies in."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image, y, c = e // (H * W), (e // W % H).to(tl.int32), (e % W).to(tl.int32)
    result = tl.zeros([BLOCK], g.dtype.element_ty)
    for dy in range(0, (KH + SH - 1) // SH):
        for dx in range(0, (KW + SW - 1) // SW):
            oy, ox = (y + PH) // SH - dy, (c + PW) // SW - dx
            ky, kx = y + PH - oy * SH, c + PW - ox * SW
            here = (e < total) & (oy >= 0) & (ox >= 0) & (oy < OH) & (ox < OW) & (ky < KH) & (kx < KW)
            v = tl.load(g + (image * OH + oy) * OW + ox, mask=here, other=0)
            result += div(v, tl.full([BLOCK], KH * KW, g.dtype.element_ty))
    tl.store(out + e, result, mask=e < total)
