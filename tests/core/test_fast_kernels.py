"""Products in the fast classes, by AMX, against float64; skipped where the processor has none, unless the kernels were
built with instructions in its place (CONTRIBUTING.md)."""

import subprocess
import sys

import numpy as np
import pytest

from cyxcore import device, precision
from cyxcore.kernels import cpu, reference

needs_amx = pytest.mark.skipif(not cpu.amx(), reason="no AMX here")
FAST = ["fast", "fast16", "bf16"]
BOUND = {"fast": 2.0**-21, "fast16": 2.0**-15, "bf16": 2.0**-7}  # beside what float32 sums may lose: K * 2**-24
CANARY = 0x5A


@pytest.fixture(autouse=True)
def exact_afterwards():
    threads = cpu.get_num_threads()
    yield
    cpu.set_terms(0)
    cpu.set_isa("avx512" if cpu.amx() else cpu.isa())
    cpu.set_num_threads(threads)


def guarded(shape, dtype=np.float32, offset=0):
    """An array with canaries before and behind it, and a function that says whether they live."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 4096, CANARY, np.uint8)
    begin = 2048 + offset
    array = raw[begin : begin + size].view(dtype).reshape(shape)
    return array, lambda: bool((raw[:begin] == CANARY).all() and (raw[begin + size :] == CANARY).all())


def multiplied(name, a, b, transpose_a=False, transpose_b=False, offset=0):
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m = a.shape[-1 if transpose_a else -2]
    n = b.shape[-2 if transpose_b else -1]
    out, untouched = guarded((*stack, m, n), offset=offset)
    held_a, _ = guarded(a.shape, offset=offset)
    held_b, _ = guarded(b.shape, offset=offset)
    held_a[...], held_b[...] = a, b
    out[...] = np.nan
    cpu.set_terms(precision.CLASSES[name].terms)
    cpu.call("matmul", out, [held_a, held_b], {"transpose_a": transpose_a, "transpose_b": transpose_b})
    cpu.set_terms(0)
    assert untouched()
    return out.copy()


def relative_error(got, a, b):
    """Largest |error| relative to sum |a| |b| over k, and that K."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((np.abs(got - a @ b) / np.maximum(np.abs(a) @ np.abs(b), 1e-30)).max()), a.shape[-1]


SIZES = [(64, 64, 64), (65, 300, 33), (17, 1025, 129), (128, 31, 400), (1, 700, 900), (257, 513, 95), (100, 256, 1040)]


@needs_amx
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("size", SIZES)
def test_a_product_of_any_size_keeps_to_its_class(name, transposed, size):
    m, k, n = size
    rng = np.random.default_rng(m * n + k)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    given_a = np.ascontiguousarray(a.T) if transposed[0] else a
    given_b = np.ascontiguousarray(b.T) if transposed[1] else b
    for offset in (0, 4, 36):
        error, terms = relative_error(multiplied(name, given_a, given_b, *transposed, offset=offset), a, b)
        assert error <= BOUND[name] + terms * 2.0**-24


@needs_amx
def test_random_sizes_and_magnitudes_keep_to_their_class():
    rng = np.random.default_rng(7)
    for _ in range(120):
        m, k, n = (int(each) for each in rng.integers(1, 200, 3))
        name = FAST[int(rng.integers(3))]
        scale = np.exp2(rng.integers(-20, 20, (m, k))).astype(np.float32)
        a, b = rng.standard_normal((m, k), np.float32) * scale, rng.standard_normal((k, n), np.float32)
        ta, tb = bool(rng.integers(2)), bool(rng.integers(2))
        given_a, given_b = np.ascontiguousarray(a.T) if ta else a, np.ascontiguousarray(b.T) if tb else b
        error, terms = relative_error(multiplied(name, given_a, given_b, ta, tb), a, b)
        assert error <= BOUND[name] + terms * 2.0**-24, (name, m, k, n, ta, tb)


@needs_amx
def test_three_terms_err_no_more_than_float32_does():
    rng = np.random.default_rng(1)
    for n in (128, 256, 512, 1024):
        a, b = rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)
        true = a.astype(np.float64) @ b.astype(np.float64)
        fast = np.linalg.norm(multiplied("fast", a, b) - true)
        exact = np.linalg.norm(multiplied("exact", a, b) - true)
        assert fast <= 1.2 * exact


@needs_amx
def test_a_stack_of_products_is_broadcast():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((3, 1, 96, 64), np.float32), rng.standard_normal((1, 5, 64, 80), np.float32)
    error, terms = relative_error(multiplied("fast", a, b), a, b)
    assert error <= BOUND["fast"] + terms * 2.0**-24
    error, _ = relative_error(multiplied("fast", rows := a[:, :1], b[0, 0]), rows, b[0, 0])
    assert error <= BOUND["fast"] + terms * 2.0**-24


@needs_amx
@pytest.mark.parametrize("name", FAST)
def test_bits_do_not_depend_on_threads(name):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((300, 520), np.float32), rng.standard_normal((520, 1100), np.float32)
    found = set()
    for threads in (1, 2, 3, 7):
        cpu.set_num_threads(threads)
        found.add(multiplied(name, a, b).tobytes())
    assert len(found) == 1


@needs_amx
def test_the_class_is_in_use_where_it_pays_and_small_products_stay_exact():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((256, 256), np.float32), rng.standard_normal((256, 256), np.float32)
    assert multiplied("bf16", a, b).tobytes() != multiplied("exact", a, b).tobytes()
    a, b = a[:3, :5], b[:5, :4]
    assert multiplied("bf16", a, b).tobytes() == multiplied("exact", a, b).tobytes()


@needs_amx
def test_other_instruction_sets_and_float64_stay_exact():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((256, 256), np.float32), rng.standard_normal((256, 256), np.float32)
    exact = multiplied("exact", a, b).tobytes()
    for isa in ("avx2", "portable"):
        cpu.set_isa(isa)
        assert not cpu.amx()
        assert multiplied("bf16", a, b).tobytes() == exact
    cpu.set_isa("avx512")
    wide = [x.astype(np.float64) for x in (a, b)]
    results = []
    for terms in (0, 1):
        out = np.empty((256, 256))
        cpu.set_terms(terms)
        cpu.call("matmul", out, wide, {"transpose_a": False, "transpose_b": False})
        results.append(out.tobytes())
    assert results[0] == results[1]


def test_terms_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="expected 0 .* to 3 terms, got 4"):
        cpu.set_terms(4)
    with pytest.raises(ValueError, match="got -1"):
        cpu.Program(-1)


def odd_factors(value=None, of_a=True):
    """Ones, with the value in row 5 or column 7; so large that every class takes the unit for them."""
    a, b = np.ones((128, 256), np.float32), np.ones((256, 128), np.float32)
    if value is not None:
        (a if of_a else b).view(np.uint32)[5, 7] = np.float32(value).view(np.uint32)
    return a, b


@needs_amx
def test_odd_factors_are_multiplied_by_the_unit_in_every_class():
    a, b = np.random.default_rng(12).standard_normal((2, 128 * 256), np.float32)
    a, b = a.reshape(128, 256), b.reshape(256, 128)
    for name in FAST:
        assert multiplied(name, a, b).tobytes() != multiplied("exact", a, b).tobytes()


@needs_amx
@pytest.mark.parametrize("value", [np.inf, -np.inf, 3.3962e38])
def test_zeros_and_what_no_term_can_hold(value):
    for name in FAST:
        a, b = odd_factors(value)
        a[:5], a[6:] = 0, 0
        got = multiplied(name, a, b)
        assert not got[:5].any() and not got[6:].any()
        assert np.isinf(got[5]).all() if name == "bf16" else np.isnan(got[5]).all(), name


@needs_amx
def test_the_largest_number_that_terms_can_hold():
    for name in FAST:
        a, b = odd_factors(3.38e38)
        a[:, :7], a[:, 8:] = 0, 0
        got = multiplied(name, a, 0.5 * b)[5]
        assert np.allclose(got, 1.69e38, rtol=BOUND[name]), name


@needs_amx
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_whatever_a_nan_looks_like_it_stays_one(bits):
    for name in FAST:
        for of_a in (True, False):
            a, b = odd_factors()
            (a if of_a else b).view(np.uint32)[5, 7] = bits
            for turned in ((False, False), (True, True)):
                given = [np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), turned, strict=True)]
                got = np.isnan(multiplied(name, *given, *turned))
                assert got.sum() == 128 and (got[5] if of_a else got[:, 7]).all(), name


@needs_amx
def test_few_rows_by_a_long_factor_that_is_read_once_stay_exact_in_the_class_of_most_terms():
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal((64, 9216), np.float32), rng.standard_normal((128, 9216), np.float32)
    exact = multiplied("exact", a, b, False, True).tobytes()
    assert multiplied("fast", a, b, False, True).tobytes() == exact
    assert multiplied("fast16", a, b, False, True).tobytes() != exact


@needs_amx
def test_the_definition_is_met_by_whole_numbers_without_any_error():
    rng = np.random.default_rng(6)
    a = rng.integers(-100, 100, (96, 200)).astype(np.float32)
    b = rng.integers(-100, 100, (200, 72)).astype(np.float32)
    attrs = {"transpose_a": False, "transpose_b": False}
    for name in FAST:  # eight bits of mantissa hold them, and float32 their sums
        assert np.array_equal(multiplied(name, a, b), reference.KERNELS["matmul"](attrs, a, b))


@needs_amx
@pytest.mark.parametrize("m, k, n", [(4260, 32, 4300), (4300, 20, 8530), (270, 512, 280)])
def test_a_factor_that_all_but_fills_the_cache_is_cut_into_blocks(m, k, n):
    rng = np.random.default_rng(8)
    a, b = rng.integers(-9, 9, (m, k)).astype(np.float32), rng.integers(-9, 9, (k, n)).astype(np.float32)
    for name in FAST:  # without any error, as above
        assert np.array_equal(multiplied(name, a, b), a @ b)


# -- convolutions ------------------------------------------------------------------------------------------

CONVOLUTIONS = [  # images, channels, (h, w), rows, (kh, kw), padding, dilation
    (3, 32, (26, 26), 64, (3, 3), (0, 0), (1, 1)),
    (2, 64, (32, 32), 96, (3, 3), (1, 1), (1, 1)),
    (1, 37, (19, 47), 101, (5, 2), (2, 0), (1, 1)),
    (2, 48, (17, 33), 99, (3, 3), (2, 4), (2, 3)),
    (3, 96, (9, 30), 128, (1, 1), (0, 0), (1, 1)),
    (2, 33, (12, 31), 97, (3, 3), (5, 4), (1, 1)),
    (2, 40, (20, 20), 98, (2, 4), (3, 3), (1, 2)),
    (1, 64, (150, 70), 32, (3, 3), (1, 1), (1, 1)),  # several bands
    (1, 33, (40, 301), 48, (5, 3), (0, 4), (3, 1)),  # bands whose windows reach far
    (9, 96, (30, 3), 64, (3, 3), (1, 0), (1, 1)),  # lines of one pixel
    (5, 64, (6, 6), 40, (3, 3), (0, 0), (1, 1)),  # 16 pixels are four lines
    (2, 64, (25, 25), 9, (3, 3), (1, 1), (1, 1)),
]


def convolutions(case, seed=0):
    """(op, output shape, inputs, attributes) of the three."""
    images, channels, (h, w), rows, (kh, kw), padding, dilation = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, channels, h, w), np.float32)
    weight = rng.standard_normal((rows, channels, kh, kw), np.float32)
    out_h = h + 2 * padding[0] - dilation[0] * (kh - 1)
    out_w = w + 2 * padding[1] - dilation[1] * (kw - 1)
    g = rng.standard_normal((images, rows, out_h, out_w), np.float32)
    attrs = {"stride": (1, 1), "padding": padding, "dilation": dilation, "groups": 1}
    yield "conv2d", g.shape, [x, weight], attrs
    yield "conv2d_grad_input", x.shape, [g, weight], {**attrs, "input_shape": x.shape}
    yield "conv2d_grad_weight", weight.shape, [g, x], {**attrs, "weight_shape": weight.shape}


def convolved(name, op, shape, inputs, attrs, offset=0):
    out, untouched = guarded(shape, offset=offset)
    held = []
    for each in inputs:
        own, _ = guarded(each.shape, offset=offset)
        own[...] = each
        held.append(own)
    out[...] = np.nan
    cpu.set_terms(precision.CLASSES[name].terms)
    cpu.call(op, out, held, attrs)
    cpu.set_terms(0)
    assert untouched()
    return out.copy()


def keeps_to_its_class(name, op, shape, inputs, attrs):
    wide = [x.astype(np.float64) for x in inputs]
    true, size = np.empty(shape), np.empty(shape)
    cpu.call(op, true, wide, attrs)
    cpu.call(op, size, [np.abs(x) for x in wide], attrs)
    got = convolved(name, op, shape, inputs, attrs, offset=4)
    if got.tobytes() == convolved("exact", op, shape, inputs, attrs).tobytes():
        size[...] = size.max()  # AMX does not pay: 3 x 3 kernels go by tiles, whose outputs share their errors
    terms = inputs[1].size if op != "conv2d_grad_weight" else inputs[0][:, 0].size
    return bool((np.abs(got - true) <= (BOUND[name] + terms * 2.0**-24) * size + 1e-30).all())


@needs_amx
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_keep_to_their_class(name, case):
    for op, shape, inputs, attrs in convolutions(case):
        assert keeps_to_its_class(name, op, shape, inputs, attrs), op


@needs_amx
def test_convolutions_use_the_unit_and_threads_do_not_show():
    for op, shape, inputs, attrs in convolutions(CONVOLUTIONS[1]):
        found = set()
        for threads in (1, 2, 3, 5):
            cpu.set_num_threads(threads)
            found.add(convolved("fast", op, shape, inputs, attrs).tobytes())
        assert len(found) == 1
        assert found != {convolved("exact", op, shape, inputs, attrs).tobytes()}


@needs_amx
def test_random_convolutions_keep_to_their_class():
    rng = np.random.default_rng(11)
    for seed in range(60):
        kernel, dilation = rng.integers(1, 5, 2), rng.integers(1, 4, 2)
        size = [int(each) for each in (kernel - 1) * dilation + rng.integers(1, 40, 2)]
        padding = [int(each) for each in rng.integers(0, 6, 2)]
        images, channels, rows = (int(each) for each in rng.integers((1, 1, 1), (4, 100, 100)))
        case = images, channels, size, rows, kernel.tolist(), padding, dilation.tolist()
        name = FAST[int(rng.integers(3))]
        cpu.set_num_threads(int(rng.integers(1, 4)))
        for op, shape, inputs, attrs in convolutions(case, seed):
            assert keeps_to_its_class(name, op, shape, inputs, attrs), (name, op, case)


SCRATCH = """
import resource
import numpy as np
from cyxcore.kernels import cpu
x, weight = np.ones((1, 64, 512, 512), np.float32), np.ones((64, 64, 3, 3), np.float32)
g = x.copy()
attrs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
calls = [
    ("conv2d", g, [x, weight], attrs),
    ("conv2d_grad_input", x, [g, weight], {**attrs, "input_shape": x.shape}),
    ("conv2d_grad_weight", weight, [g, x], {**attrs, "weight_shape": weight.shape}),
]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cpu.set_terms(3)
for op, out, inputs, given in calls:
    cpu.call(op, out, inputs, given)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@needs_amx
def test_what_a_convolution_needs_beside_its_arrays_does_not_grow_with_the_image():
    found = subprocess.run([sys.executable, "-c", SCRATCH], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 8 * 1024  # kB; an image of 64 MB would be 100 MB as terms


@needs_amx
def test_windows_apart_and_groups_stay_exact():
    rng = np.random.default_rng(9)
    for stride, groups in (((2, 2), 1), ((1, 1), 2)):
        x = rng.standard_normal((2, 64, 32, 32), np.float32)
        weight = rng.standard_normal((64, 64 // groups, 3, 3), np.float32)
        attrs = {"stride": stride, "padding": (1, 1), "dilation": (1, 1), "groups": groups}
        shape = (2, 64, 32 // stride[0], 32 // stride[1])
        exact = convolved("exact", "conv2d", shape, [x, weight], attrs)
        assert convolved("bf16", "conv2d", shape, [x, weight], attrs).tobytes() == exact.tobytes()


# -- factors that several products share ---------------------------------------------------------------------

PLAIN = {"transpose_a": False, "transpose_b": False}


def at_once(name, a, b, **turned):
    out = np.empty((a.shape[0], b.shape[0] if turned.get("transpose_b") else b.shape[1]), np.float32)
    cpu.set_terms(precision.CLASSES[name].terms)
    cpu.call("matmul", out, [a, b], {**PLAIN, **turned})
    cpu.set_terms(0)
    return out


@needs_amx
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [(64, 250, 143), (32, 128, 512), (300, 90, 95)])
def test_a_factor_that_products_share_is_packed_once_a_run_and_no_bit_changes(name, size):
    m, k, n = size
    rng = np.random.default_rng(k)
    b, turned = rng.standard_normal((k, n), np.float32), rng.standard_normal((n, k), np.float32)
    program = cpu.Program(precision.CLASSES[name].terms)
    given = [rng.standard_normal((m, k), np.float32) for _ in range(4)]
    outs = [np.empty((m, n), np.float32) for _ in range(4)]
    for place, (a, out) in enumerate(zip(given, outs, strict=True)):
        program.add("matmul", out, [a, turned if place % 2 else b], {**PLAIN, "transpose_b": bool(place % 2)})
    program.fuse()
    tiles = (k + 31) // 32 * 32 * ((n + 15) // 16 * 16)
    assert program.packed_bytes == 2 * 2 * tiles * precision.CLASSES[name].terms
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        b *= 2  # the next run packs it again
        program.run()
        for place, (a, out) in enumerate(zip(given, outs, strict=True)):
            want = at_once(name, a, turned, transpose_b=True) if place % 2 else at_once(name, a, b)
            assert out.tobytes() == want.tobytes()


@needs_amx
def test_a_factor_whose_memory_is_written_to_is_another_one():
    rng = np.random.default_rng(1)
    memory, a = rng.standard_normal(2 * 128 * 128, np.float32), rng.standard_normal((128, 128), np.float32)
    b, other = memory[: 128 * 128].reshape(128, 128), memory[100 * 128 : 228 * 128].reshape(128, 128)
    before, source = b.copy(), rng.standard_normal((128, 128), np.float32)
    outs = [np.empty((128, 128), np.float32) for _ in range(4)]
    program = cpu.Program(3)
    program.add("matmul", outs[0], [a, b], PLAIN)
    program.add("matmul", outs[1], [a, b], PLAIN)
    program.add("neg", other, [source], {})  # its first rows are the last ones of b
    program.add("matmul", outs[2], [a, b], PLAIN)
    program.add("matmul", outs[3], [a, b], PLAIN)
    program.fuse()
    program.run()
    assert program.packed_bytes == 2 * 128 * 128 * 2 * 3
    assert outs[0].tobytes() == outs[1].tobytes() == at_once("fast", a, before).tobytes()
    assert outs[2].tobytes() == outs[3].tobytes() == at_once("fast", a, b).tobytes()
    assert outs[0].tobytes() != outs[2].tobytes()


@needs_amx
def test_a_program_with_shared_factors_runs_exactly_where_there_is_no_unit():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((64, 128), np.float32), rng.standard_normal((128, 96), np.float32)
    outs = [np.empty((64, 96), np.float32) for _ in range(2)]
    program = cpu.Program(3)
    for out in outs:
        program.add("matmul", out, [a, b], PLAIN)
    program.fuse()
    cpu.set_isa("avx2")
    program.run()
    cpu.set_isa("avx512")
    assert {out.tobytes() for out in outs} == {at_once("exact", a, b).tobytes()}
    program.run()
    assert {out.tobytes() for out in outs} == {at_once("fast", a, b).tobytes()}


def test_an_exact_program_packs_nothing():
    a = np.ones((64, 64), np.float32)
    program = cpu.Program()
    for _ in range(2):
        program.add("matmul", np.empty((64, 64), np.float32), [a, a], PLAIN)
    program.fuse()
    assert program.packed_bytes == 0


@needs_amx
def test_a_plan_with_operations_of_users_says_what_all_its_parts_pack():
    a, b = np.ones((128, 128), np.float32), np.ones((128, 128), np.float32)
    calls = [device.Call("matmul", np.empty((128, 128), np.float32), (a, b), PLAIN) for _ in range(4)]
    own = device.Call("user.own", np.empty(1, np.float32), (), {})
    run = precision.backend("cpu", "fast").program([*calls[:2], own, *calls[2:]])
    assert run.__self__.packed_bytes == 2 * (2 * 128 * 128 * 3)
