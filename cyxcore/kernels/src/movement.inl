/* Kernels that move elements without looking at them: one version per element size. transpose() is that of gemm.inl. */
enum { TRANSPOSE_TILE = 8, TRANSPOSE_ROWS = 64, LEAST_MOVED = 16384 }; /* LEAST_MOVED: elements that outweigh waking a thread */

/* out, contiguous, from an input seen through strides: transpose, broadcast_to and slice are this. */
typedef struct {
    const char *from; /* of the element at the origin */
    char *out;
    int bytes;
    cyx_walk walk;
} strided_copy;

#define COPY_ROW(T)                                                                                          \
    do {                                                                                                     \
        const T *from_row = (const T *)from;                                                                 \
        T *out_row = (T *)out, one = *from_row;                                                              \
        if (!stride)                                                                                         \
            INDEPENDENT for (int64_t i = 0; i < n; i++) out_row[i] = one;                                    \
        else if (stride == -1)                                                                               \
            INDEPENDENT for (int64_t i = 0; i < n; i++) out_row[i] = from_row[-i];                           \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++) out_row[i] = from_row[i * stride];                               \
    } while (0)

enum { LEAST_BY_VECTORS = 4 * VECTOR_BYTES, MOST_BY_VECTORS = 8192 }; /* bytes of a row */

/* Of such rows memcpy() takes a fifth longer: it asks each time how to copy. The last two vectors may overlap. */
static void copy_by_vectors(char *out, const char *from, int64_t bytes) {
    int64_t last = bytes - VECTOR_BYTES;
    _Pragma("GCC unroll 4") for (int64_t i = 0; i < last; i += VECTOR_BYTES) *(vu8 *)(out + i) = *(const vu8 *)(from + i);
    *(vu8 *)(out + last) = *(const vu8 *)(from + last);
}

static void copy_row(char *out, const char *from, int64_t stride, int64_t n, int bytes) {
    if (stride == 1 && n * bytes >= LEAST_BY_VECTORS && n * bytes <= MOST_BY_VECTORS)
        copy_by_vectors(out, from, n * bytes);
    else if (stride == 1)
        memcpy(out, from, (size_t)(n * bytes));
    else if (bytes == 4)
        COPY_ROW(uint32_t);
    else if (bytes == 8)
        COPY_ROW(uint64_t);
    else
        COPY_ROW(uint8_t);
}

static void strided_copy_body(void *context, int64_t begin, int64_t end) {
    const strided_copy *copy = context;
    const cyx_walk *walk = &copy->walk;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS];
    int64_t inner = walk->shape[walk->ndim - 1], stride = walk->stride[0][walk->ndim - 1];
    cyx_walk_seek(walk, 1, begin * inner, coordinate, offset);
    for (int64_t row = begin; row < end; row++) {
        copy_row(copy->out + row * inner * copy->bytes, copy->from + offset[0] * copy->bytes, stride, inner,
                 copy->bytes);
        if (row + 1 < end) cyx_walk_next_row(walk, 1, coordinate, offset);
    }
}

#define TRANSPOSE_ROWS_OF(T)                                                                                 \
    for (int64_t c0 = 0; c0 < columns; c0 += TRANSPOSE_TILE)                                                 \
        for (int64_t r0 = first; r0 < stop; r0 += TRANSPOSE_TILE)                                            \
            for (int64_t r = r0; r < stop && r < r0 + TRANSPOSE_TILE; r++)                                   \
                for (int64_t c = c0; c < columns && c < c0 + TRANSPOSE_TILE; c++)                            \
    ((T *)out)[r * columns + c] = ((const T *)from)[r + c * stride]

/* The last two dimensions swapped, TRANSPOSE_ROWS rows of a matrix a task: in tiles, so that both sides stay in cache. */
static void transpose_body(void *context, int64_t begin, int64_t end) {
    const strided_copy *copy = context;
    cyx_walk walk = copy->walk;
    int64_t rows = walk.shape[walk.ndim - 2], columns = walk.shape[walk.ndim - 1],
            stride = walk.stride[0][walk.ndim - 1], tasks = (rows + TRANSPOSE_ROWS - 1) / TRANSPOSE_ROWS;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS];
    walk.ndim -= 1;
    for (int64_t task = begin; task < end; task++) {
        int64_t matrix = task / tasks, first = task % tasks * TRANSPOSE_ROWS;
        int64_t stop = rows - first < TRANSPOSE_ROWS ? rows : first + TRANSPOSE_ROWS;
        cyx_walk_seek(&walk, 1, matrix * rows, coordinate, offset);
        char *out = copy->out + matrix * rows * columns * copy->bytes;
        const char *from = copy->from + offset[0] * copy->bytes;
        if (copy->bytes == 4 && columns >= LANES) /* its vectors write no further than a row */
            transpose_f32((const float *)from + first, stride, (float *)out + first * columns, columns, columns, stop - first);
        else if (copy->bytes == 8 && columns >= LANES / 2)
            transpose_f64((const double *)from + first, stride, (double *)out + first * columns, columns, columns, stop - first);
        else if (copy->bytes == 4)
            TRANSPOSE_ROWS_OF(uint32_t);
        else if (copy->bytes == 8)
            TRANSPOSE_ROWS_OF(uint64_t);
        else
            TRANSPOSE_ROWS_OF(uint8_t);
    }
}

#define REPEAT_ROW(T)                                                                                        \
    do {                                                                                                     \
        const T *one = (const T *)from;                                                                      \
        T *all = (T *)out;                                                                                   \
        if (times == 2)                                                                                      \
            for (int64_t i = 0; i < n; i++) all[2 * i] = all[2 * i + 1] = one[i];                            \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                for (int64_t k = 0; k < times; k++) all[i * times + k] = one[i];                             \
    } while (0)

/* Each of neighbouring elements some times. */
static void repeat_body(void *context, int64_t begin, int64_t end) {
    const strided_copy *copy = context;
    cyx_walk walk = copy->walk;
    int64_t times = walk.shape[walk.ndim - 1], height = walk.shape[walk.ndim - 2];
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS];
    walk.ndim -= 1;
    for (int64_t at = begin, n; at < end; at += n) {
        n = height - at % height < end - at ? height - at % height : end - at;
        cyx_walk_seek(&walk, 1, at, coordinate, offset);
        const char *from = copy->from + (offset[0] + coordinate[walk.ndim - 1]) * copy->bytes;
        char *out = copy->out + at * times * copy->bytes;
        if (copy->bytes == 4)
            REPEAT_ROW(uint32_t);
        else if (copy->bytes == 8)
            REPEAT_ROW(uint64_t);
        else
            REPEAT_ROW(uint8_t);
    }
}

/* The space of `out` with an input of these strides in it; neighbouring dimensions that are crossed with one stride become
 * one. */
static void strided_walk(cyx_walk *walk, const cyx_array *out, const int64_t *stride) {
    walk->ndim = 0;
    for (int d = 0; d < out->ndim; d++) {
        if (out->shape[d] == 1) continue;
        if (walk->ndim && walk->stride[0][walk->ndim - 1] == stride[d] * out->shape[d]) {
            walk->shape[walk->ndim - 1] *= out->shape[d];
            walk->stride[0][walk->ndim - 1] = stride[d];
        } else {
            walk->shape[walk->ndim] = out->shape[d];
            walk->stride[0][walk->ndim++] = stride[d];
        }
    }
    if (!walk->ndim) walk->shape[0] = 1, walk->stride[0][0] = 1, walk->ndim = 1;
}

static cyx_status run_strided_copy(const cyx_call *call, const int64_t *stride, int64_t origin) {
    const cyx_array *out = &call->out;
    if (!out->size) return CYX_OK;
    strided_copy copy = {.out = out->data, .bytes = cyx_dtype_bytes[out->dtype]};
    copy.from = (const char *)call->in[0].data + origin * copy.bytes;
    cyx_walk *walk = &copy.walk;
    strided_walk(walk, out, stride);
    int64_t inner = walk->shape[walk->ndim - 1], rows = out->size / inner;
    int swapped =
        walk->ndim >= 2 && walk->stride[0][walk->ndim - 1] > 1 && walk->stride[0][walk->ndim - 2] == 1;
    if (swapped) {
        int64_t height = walk->shape[walk->ndim - 2], matrices = rows / height;
        int64_t tasks = matrices * ((height + TRANSPOSE_ROWS - 1) / TRANSPOSE_ROWS);
        cyx_parallel(tasks, cyx_grain(tasks, (double)out->size / (double)tasks, LEAST_MOVED), transpose_body, &copy);
    } else if (walk->ndim >= 2 && walk->stride[0][walk->ndim - 1] == 0 && walk->stride[0][walk->ndim - 2] == 1) {
        cyx_parallel(rows, cyx_grain(rows, (double)inner, CYX_LEAST_WORK), repeat_body, &copy);
    } else {
        cyx_parallel(rows, cyx_grain(rows, (double)inner, CYX_LEAST_WORK), strided_copy_body, &copy);
    }
    return CYX_OK;
}

static void strides_of(const cyx_array *x, int64_t *stride) {
    int64_t step = 1;
    for (int d = x->ndim - 1; d >= 0; d--) stride[d] = step, step *= x->shape[d];
}

static cyx_status reshape(const cyx_call *call) {
    if (call->out.data != call->in[0].data)
        memmove(call->out.data, call->in[0].data,
                (size_t)(call->out.size * cyx_dtype_bytes[call->out.dtype]));
    return CYX_OK;
}

/* ints: count, axes... */
static cyx_status transpose(const cyx_call *call) {
    int64_t own[CYX_MAX_NDIM], stride[CYX_MAX_NDIM];
    strides_of(&call->in[0], own);
    for (int d = 0; d < call->out.ndim; d++) stride[d] = own[call->ints[1 + d]];
    return run_strided_copy(call, stride, 0);
}

static cyx_status broadcast_to(const cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t own[CYX_MAX_NDIM], stride[CYX_MAX_NDIM];
    int missing = call->out.ndim - x->ndim;
    strides_of(x, own);
    for (int d = 0; d < call->out.ndim; d++)
        stride[d] = d < missing || x->shape[d - missing] == 1 ? 0 : own[d - missing];
    return run_strided_copy(call, stride, 0);
}

/* A slice as one of a group of element-wise calls; the first element that it reads is constants[0]. */
static void slice_body(void *context, int64_t begin, int64_t end) {
    int bytes = cyx_dtype_bytes[((const cyx_rows *)context)->call->out.dtype];
    CYX_FOR_ROWS(1, {
        int64_t stride = walk->stride[0][walk->ndim - 1];
        int64_t from = (int64_t)rows->constants[0] + offset[0] + first * stride;
        copy_row((char *)rows->call->out.data + at * bytes, (const char *)rows->call->in[0].data + from * bytes, stride,
                 n, bytes);
    })
}

/* ints: count, starts..., count, stops..., count, steps... */
static cyx_status slice(const cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t stride[CYX_MAX_NDIM], origin = 0;
    int backwards = 0;
    const int64_t *starts = call->ints + 1, *steps = call->ints + 2 * (1 + x->ndim) + 1;
    strides_of(x, stride);
    for (int d = 0; d < x->ndim; d++) {
        origin += starts[d] * stride[d];
        stride[d] *= call->out.shape[d] > 1 ? steps[d] : 1; /* one that is never made may be of any length */
        backwards |= steps[d] < 0;
    }
    if (cyx_asked) {
        if (backwards) return CYX_OK; /* in no group: it may be as large as what it reads, and read other tiles of that */
        strided_walk(&cyx_asked->rows.walk, &call->out, stride);
        cyx_asked->body = slice_body, cyx_asked->rows.constants[0] = (double)origin;
        return CYX_OK;
    }
    return run_strided_copy(call, stride, origin);
}

typedef struct {
    const cyx_call *call;
    int ndim; /* at least 2, as axes without a border are one with the axis before them */
    int64_t own[CYX_MAX_NDIM + 1], low[CYX_MAX_NDIM + 1], all[CYX_MAX_NDIM + 1]; /* of the input, before it, of the output */
    uint64_t pattern; /* the bits of the value, as often as they fit */
} padding;

static void fill_pattern(char *out, uint64_t pattern, int64_t count, int bytes) {
    if (!pattern)
        memset(out, 0, (size_t)(count * bytes));
    else if (bytes == 4)
        for (int64_t i = 0; i < count; i++) ((uint32_t *)out)[i] = (uint32_t)pattern;
    else if (bytes == 8)
        for (int64_t i = 0; i < count; i++) ((uint64_t *)out)[i] = pattern;
    else
        memset(out, (int)(pattern & 255), (size_t)count);
}

enum { NARROW_ROW = 128, NARROW_ROWS = 4096 }; /* bytes of a row that is filled with others, and of all of them */

/* Rows of the input between two borders each. Narrow ones are laid into border, without a call for each of the three parts. */
static void pad_rows(const padding *p, char *to, const char *from, int64_t count, int bytes) {
    int64_t before = p->low[p->ndim - 1], own = p->own[p->ndim - 1], all = p->all[p->ndim - 1];
    if (all * bytes > NARROW_ROW) {
        for (int64_t row = 0; row < count; row++, to += all * bytes, from += own * bytes) {
            fill_pattern(to, p->pattern, before, bytes);
            memcpy(to + before * bytes, from, (size_t)(own * bytes));
            fill_pattern(to + (before + own) * bytes, p->pattern, all - before - own, bytes);
        }
        return;
    }
    for (int64_t most = NARROW_ROWS / (all * bytes), rows; count; count -= rows) {
        rows = count < most ? count : most;
        fill_pattern(to, p->pattern, rows * all, bytes);
        char *part = to + before * bytes;
        if (own == 1 && bytes == 4)
            for (int64_t row = 0; row < rows; row++) ((uint32_t *)part)[row * all] = ((const uint32_t *)from)[row];
        else
            for (int64_t row = 0; row < rows; row++)
                memcpy(part + row * all * bytes, from + row * own * bytes, (size_t)(own * bytes));
        to += rows * all * bytes, from += rows * own * bytes;
    }
}

/* Rows [begin, end) of the output: of the input between two borders, or border alone. */
static void pad_body(void *context, int64_t begin, int64_t end) {
    const padding *p = context;
    int bytes = cyx_dtype_bytes[p->call->out.dtype], outer = p->ndim - 2;
    int64_t line = p->all[p->ndim - 1] * bytes, own = p->own[p->ndim - 1];
    for (int64_t row = begin, rows; row < end; row += rows) { /* those of one place on the axes before the last two */
        char *to = (char *)p->call->out.data + row * line;
        int64_t at = row % p->all[outer], rest = row / p->all[outer], from = 0, step = own * p->own[outer];
        int inside = 1;
        rows = p->all[outer] - at < end - row ? p->all[outer] - at : end - row;
        for (int d = outer - 1; d >= 0; d--) {
            int64_t place = rest % p->all[d] - p->low[d];
            rest /= p->all[d];
            inside &= place >= 0 && place < p->own[d];
            from += place * step, step *= p->own[d];
        }
        int64_t first = p->low[outer] - at > 0 ? p->low[outer] - at : 0; /* rows of border before those of the input */
        int64_t place = at + first - p->low[outer], count = p->own[outer] - place;
        first = !inside || first > rows ? rows : first;
        count = count < 0 ? 0 : count > rows - first ? rows - first : count;
        fill_pattern(to, p->pattern, first * p->all[outer + 1], bytes);
        if (count)
            pad_rows(p, to + first * line, (const char *)p->call->in[0].data + (from + place * own) * bytes, count, bytes);
        fill_pattern(to + (first + count) * line, p->pattern, (rows - first - count) * p->all[outer + 1], bytes);
    }
}

static void merge_axes(padding *p) {
    const cyx_array *x = &p->call->in[0], *out = &p->call->out;
    int64_t own[CYX_MAX_NDIM + 1], low[CYX_MAX_NDIM + 1], all[CYX_MAX_NDIM + 1]; /* from the last axis on */
    int count = 0;
    for (int d = x->ndim - 1; d >= 0; d--) {
        int64_t before = p->call->ints[1 + 2 * d];
        if (count && own[count - 1] == all[count - 1]) {
            low[count - 1] = before * own[count - 1];
            own[count - 1] *= x->shape[d], all[count - 1] *= out->shape[d];
        } else {
            own[count] = x->shape[d], low[count] = before, all[count++] = out->shape[d];
        }
    }
    if (count == 1) own[count] = all[count] = 1, low[count++] = 0;
    p->ndim = count;
    for (int d = 0; d < count; d++)
        p->own[d] = own[count - 1 - d], p->low[d] = low[count - 1 - d], p->all[d] = all[count - 1 - d];
}

#define PATTERN(T)                                                                                           \
    do {                                                                                                     \
        T value = (T)call->floats[0];                                                                        \
        memcpy(&p.pattern, &value, sizeof value);                                                            \
    } while (0)

/* ints: count, then lo and hi of each dimension; floats: value */
static cyx_status pad(const cyx_call *call) {
    const cyx_array *out = &call->out;
    padding p = {.call = call, .own = {1, 1}, .all = {1, 1}};
    switch (out->dtype) {
    case CYX_F32: PATTERN(float); break;
    case CYX_F64: PATTERN(double); break;
    case CYX_I64: PATTERN(int64_t); break;
    case CYX_I32: PATTERN(int32_t); break;
    default: PATTERN(uint8_t); break;
    }
    if (!out->ndim)
        memcpy(out->data, call->in[0].data, (size_t)cyx_dtype_bytes[out->dtype]);
    else if (out->size) {
        merge_axes(&p);
        int64_t line = p.all[p.ndim - 1], rows = out->size / line;
        cyx_parallel(rows, cyx_grain(rows, (double)line, CYX_LEAST_WORK), pad_body, &p);
    }
    return CYX_OK;
}

typedef struct {
    const cyx_call *call;
    int64_t line; /* bytes of the output before the axis moves on */
} joining;

enum { JOINED_AT_ONCE = 256 }; /* lines that stay in the cache until all inputs are in them */

static void concat_body(void *context, int64_t begin, int64_t end) {
    const joining *j = context;
    const cyx_call *call = j->call;
    for (int64_t first = begin; first < end; first += JOINED_AT_ONCE) {
        int64_t stop = first + JOINED_AT_ONCE < end ? first + JOINED_AT_ONCE : end;
        char *to = (char *)call->out.data + first * j->line;
        for (int i = 0; i < call->in_count; i++) {
            const cyx_array *x = &call->in[i];
            int64_t bytes = cyx_dtype_bytes[x->dtype];
            for (int d = (int)call->ints[0]; d < x->ndim; d++) bytes *= x->shape[d];
            const char *from = (const char *)x->data + first * bytes;
            if (bytes == 4)
                for (int64_t row = 0; row < stop - first; row++)
                    memcpy(to + row * j->line, from + 4 * row, 4);
            else if (bytes == 8)
                for (int64_t row = 0; row < stop - first; row++)
                    memcpy(to + row * j->line, from + 8 * row, 8);
            else
                for (int64_t row = 0; bytes && row < stop - first; row++)
                    memcpy(to + row * j->line, from + row * bytes, (size_t)bytes);
            to += bytes;
        }
    }
}

/* ints: axis */
static cyx_status concat(const cyx_call *call) {
    joining j = {call, cyx_dtype_bytes[call->out.dtype]};
    int64_t lines = 1;
    for (int d = 0; d < call->out.ndim; d++) *(d < call->ints[0] ? &lines : &j.line) *= call->out.shape[d];
    if (!call->out.size) return CYX_OK;
    cyx_parallel(lines, cyx_grain(lines, (double)j.line / 8, CYX_LEAST_WORK), concat_body, &j);
    return CYX_OK;
}

static void fill_movement(cyx_table table) {
    for (int dtype = CYX_F32; dtype <= CYX_U8; dtype++) {
        table[CYX_OP_reshape][dtype] = reshape, table[CYX_OP_transpose][dtype] = transpose;
        table[CYX_OP_broadcast_to][dtype] = broadcast_to, table[CYX_OP_slice][dtype] = slice;
        table[CYX_OP_pad][dtype] = pad, table[CYX_OP_concat][dtype] = concat;
    }
}
