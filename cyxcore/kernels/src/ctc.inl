/* The loss of connectionist temporal classification and its gradient: Graves et al. 2006, forward and backward variables in
 * logarithms, each step's less their greatest, whose sum over the steps is in double: so their digits are kept over any number of
 * steps.
 *
 * A row goes through labels 0 to S - 1 with a blank before each and one at the end. A record of a step has those that end in
 * each label, and those that end in each blank. Backwards all is in the reverse order, and so the same recursion. */

#ifndef CTC_ONCE
#define CTC_ONCE
enum {
    CTC_BEFORE = 16,  /* in a record, before the labels: the last is none, which the first label and blank come from, too */
    CTC_CHUNK = 16,   /* labels are whole chunks, so that nothing depends on the length of vectors; also lanes of a sum */
    CTC_WORK = 30     /* operations for each label and step */
};
#define CTC_NEVER ((T)-1e30) /* a logarithm of 0 whose differences are finite */
#endif

typedef struct {
    const T *log_probs, *g; /* (T, N, C); (N,), NULL on the way there */
    const int64_t *targets, *steps, *counts; /* (N, S), (N,), (N,) */
    T *out;
    int64_t most_steps, rows, classes, most_labels, blank;
    int zero_infinity;
    int64_t wide, record; /* the labels in whole chunks, and one more for the last blank; elements of a record */
    _Atomic int no_memory;
} NAME(ctc);

/* What a row needs. leap: added to what comes to a label over a blank: nothing, or CTC_NEVER where it cannot. */
typedef struct {
    const int64_t *labels;
    const T *log_probs; /* of its first step */
    T *leap, *emitted, *work;
    int64_t count;
} NAME(ctc_way);

/* The state before any step: in the first blank. */
static void NAME(ctc_start)(const NAME(ctc) * one, T *record) {
    for (int64_t i = 0; i < one->record; i++) record[i] = CTC_NEVER;
    record[CTC_BEFORE + one->wide] = 0;
}

/* One step on: the logarithm of the sum of e**x over where each comes from. The greatest counts as 1. */
static void NAME(ctc_step)(const NAME(ctc) * one, const NAME(ctc_way) * way, const T *from, T *to) {
    const T *labels = from + CTC_BEFORE, *blanks = labels + one->wide;
    int64_t wide = one->wide;
    T *less = way->work, *most = less + 3 * wide, *sums = to + CTC_BEFORE;
    for (int64_t i = 0; i < wide; i += VN) {
        V here = *(const V *)(labels + i), before = *(const V *)(labels + i - 1), blank = *(const V *)(blanks + i);
        V first = SELECT(blank < before, before, blank), second = SELECT(blank < before, blank, before);
        *(V *)(most + wide + i) = first, *(V *)(less + 2 * wide + i) = second - first;
        before += *(const V *)(way->leap + i);
        first = SELECT(here < blank, blank, here), second = SELECT(here < blank, here, blank);
        V greatest = SELECT(first < before, before, first), third = SELECT(first < before, first, before);
        *(V *)(most + i) = greatest, *(V *)(less + i) = second - greatest, *(V *)(less + wide + i) = third - greatest;
    }
    NAME(exp_row)(less, less, 0, 3 * wide);
    for (int64_t i = 0; i < wide; i += VN) {
        *(V *)(sums + i) = *(const V *)(less + i) + 1 + *(const V *)(less + wide + i);
        *(V *)(sums + wide + i) = *(const V *)(less + 2 * wide + i) + 1;
    }
    NAME(log_row)(sums, 2 * wide);
    for (int64_t i = 0; i < 2 * wide; i += VN) *(V *)(sums + i) += *(const V *)(most + i);
    to[CTC_BEFORE - 1] = CTC_NEVER;
}

/* Add what a step emits. What is no label is never reached. */
static void NAME(ctc_emit)(const NAME(ctc) * one, const NAME(ctc_way) * way, int64_t t, T *record) {
    const T *of_classes = way->log_probs + t * one->rows * one->classes;
    T *labels = record + CTC_BEFORE, *blanks = labels + one->wide, blank = of_classes[one->blank];
    for (int64_t i = 0; i < way->count; i++) {
        T emitted = of_classes[way->labels[i]];
        way->emitted[i] = emitted < CTC_NEVER ? CTC_NEVER : emitted;
    }
    if (blank < CTC_NEVER) blank = CTC_NEVER;
    for (int64_t i = 0; i < one->wide; i += VN) {
        *(V *)(labels + i) += *(const V *)(way->emitted + i);
        *(V *)(blanks + i) += blank;
    }
}

/* Less the greatest, which is returned; as it is where nothing can be reached. */
static double NAME(ctc_level)(const NAME(ctc) * one, T *record) {
    V most = SPLAT(CTC_NEVER);
    T greatest = CTC_NEVER, *all = record + CTC_BEFORE;
    for (int64_t i = 0; i < 2 * one->wide; i += VN) most = SELECT(most < *(V *)(all + i), *(V *)(all + i), most);
    for (int i = 0; i < VN; i++) greatest = greatest < most[i] ? most[i] : greatest;
    if (greatest < CTC_NEVER / 2) return 0;
    for (int64_t i = 0; i < 2 * one->wide; i += VN) *(V *)(all + i) -= greatest;
    return (double)greatest;
}

/* The logarithm of the probability of a row, -infinity where there is none. records: of all steps, with `levels`, what they lack,
 * behind that of the start; or two, and no levels. */
static double NAME(ctc_there)(const NAME(ctc) * one, const NAME(ctc_way) * way, int64_t steps, T *records, double *levels) {
    double level = 0;
    T *last = records;
    NAME(ctc_start)(one, last);
    for (int64_t t = 0; t < steps; t++) {
        T *next = records + (levels ? t + 1 : (t + 1) % 2) * one->record;
        NAME(ctc_step)(one, way, last, next);
        NAME(ctc_emit)(one, way, t, next);
        level += NAME(ctc_level)(one, next);
        if (levels) levels[t] = level;
        last = next;
    }
    T label = last[CTC_BEFORE + way->count - 1], blank = last[CTC_BEFORE + one->wide + way->count];
    T most = blank < label ? label : blank, least = blank < label ? blank : label;
    if (most < CTC_NEVER / 2) return -INFINITY;
    return level + ((double)most + (double)NAME(log)(1 + NAME(exp)(least - most)));
}

/* The sum of whole chunks: CTC_CHUNK lanes, which meet in pairs. */
static T NAME(ctc_sum)(const T *x, int64_t n) {
    T lanes[CTC_CHUNK] = {0};
    for (int64_t i = 0; i < n; i += CTC_CHUNK)
        INDEPENDENT for (int j = 0; j < CTC_CHUNK; j++) lanes[j] += x[i + j];
    for (int half = CTC_CHUNK / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0];
}

/* The gradient of a row: -g times the share of all ways that is in a label or blank at a step. back: of the way, turned. */
static void NAME(ctc_back)(const NAME(ctc) * one, const NAME(ctc_way) * back, int64_t steps, const T *records, const double *levels,
                           T *own, T g, double all, T *out) {
    double level = 0;
    T *behind = own, *here = own + one->record, *share = here + one->record;
    NAME(ctc_start)(one, behind);
    for (int64_t t = steps - 1; t >= 0; t--) {
        const T *labels = records + (t + 1) * one->record + CTC_BEFORE, *blanks = labels + one->wide;
        T *to = out + t * one->rows * one->classes;
        if (t < steps - 1) NAME(ctc_emit)(one, back, t + 1, behind);
        NAME(ctc_step)(one, back, behind, here);
        level += NAME(ctc_level)(one, here);
        const T *turned = here + CTC_BEFORE + back->count - 1, *turned_blanks = here + CTC_BEFORE + one->wide + back->count;
        for (int64_t i = 0; i < one->wide; i++) share[i] = share[one->wide + i] = CTC_NEVER;
        INDEPENDENT for (int64_t i = 0; i < back->count; i++) share[i] = labels[i] + turned[-i];
        INDEPENDENT for (int64_t i = 0; i <= back->count; i++) share[one->wide + i] = blanks[i] + turned_blanks[-i];
        NAME(exp_row)(share, share, (T)(all - (levels[t] + level)), 2 * one->wide);
        for (int64_t i = 0; i < 2 * one->wide; i += VN) *(V *)(share + i) *= -g;
        memset(to, 0, sizeof(T) * (size_t)one->classes);
        for (int64_t i = 0; i < back->count; i++) to[back->labels[back->count - 1 - i]] += share[i];
        to[one->blank] += NAME(ctc_sum)(share + one->wide, one->wide);
        T *free = behind;
        behind = here, here = free;
    }
}

static void NAME(ctc_body)(void *context, int64_t begin, int64_t end) {
    NAME(ctc) *one = context;
    int64_t steps = 1, wide = one->wide, record = one->record;
    for (int64_t n = begin; one->g && n < end; n++) steps = one->steps[n] > steps ? one->steps[n] : steps;
    int64_t elements = (steps + 1) * record + 7 * wide + (one->g ? 2 * record + 3 * wide : 0);
    double *levels = cyx_scratch(1, sizeof(double) * (size_t)steps + sizeof(int64_t) * (size_t)one->most_labels +
                                        sizeof(T) * (size_t)elements);
    if (!levels) {
        one->no_memory = 1;
        return;
    }
    int64_t *turned = (int64_t *)(levels + steps);
    T *records = (T *)(turned + one->most_labels), *own = records + (steps + 1) * record;
    NAME(ctc_way) way = {.leap = own, .emitted = own + wide, .work = own + 2 * wide};
    NAME(ctc_way) back = way;
    back.leap = own + 7 * wide, own += 8 * wide;
    for (int64_t i = 0; i < wide; i++) way.emitted[i] = CTC_NEVER;
    for (int64_t n = begin; n < end; n++) {
        int64_t begins = n * one->classes, count = one->counts[n];
        for (int64_t i = count; i < way.count; i++) way.emitted[i] = CTC_NEVER; /* of the row before */
        way.labels = one->targets + n * one->most_labels, way.count = count, way.log_probs = one->log_probs + begins;
        for (int64_t i = 0; i < wide; i++) {
            int goes = i && i < count && way.labels[i] != one->blank && way.labels[i] != way.labels[i - 1];
            way.leap[i] = goes ? 0 : CTC_NEVER;
        }
        double all = NAME(ctc_there)(one, &way, one->steps[n], records, one->g ? levels : NULL);
        if (!one->g) {
            one->out[n] = all == -INFINITY ? (one->zero_infinity ? 0 : INF) : (T)-all;
            continue;
        }
        for (int64_t i = 0; i < count; i++) turned[i] = way.labels[count - 1 - i];
        for (int64_t i = 0; i < wide; i++) back.leap[i] = i && i < count ? way.leap[count - i] : CTC_NEVER;
        back.labels = turned, back.count = count, back.log_probs = way.log_probs;
        int64_t made = all == -INFINITY ? 0 : one->steps[n];
        NAME(ctc_back)(one, &back, made, records, levels, own, one->g[n], all, one->out + begins);
        for (int64_t t = made; t < one->most_steps; t++)
            memset(one->out + t * one->rows * one->classes + begins, 0, sizeof(T) * (size_t)one->classes);
    }
}

static cyx_status NAME(ctc_loss)(const cyx_call *call) {
    int gradient = call->op == CYX_OP_ctc_loss_grad;
    const cyx_array *in = call->in + gradient, *log_probs = &in[0], *targets = &in[1];
    NAME(ctc) one = {.log_probs = log_probs->data, .g = gradient ? call->in[0].data : NULL, .targets = targets->data,
                     .steps = in[2].data, .counts = in[3].data, .out = call->out.data, .most_steps = log_probs->shape[0],
                     .rows = log_probs->shape[1], .classes = log_probs->shape[2], .most_labels = targets->shape[1],
                     .blank = call->ints[0], .zero_infinity = call->ints[1] != 0};
    for (int64_t n = 0; n < one.rows; n++) {
        if (one.steps[n] < 0 || one.steps[n] > one.most_steps)
            return cyx_fail(CYX_BAD_DATA, "ctc_loss: expected input_lengths of 0..%lld, got %lld in row %lld",
                            (long long)one.most_steps, (long long)one.steps[n], (long long)n);
        if (one.counts[n] < 0 || one.counts[n] > one.most_labels)
            return cyx_fail(CYX_BAD_DATA, "ctc_loss: expected target_lengths of 0..%lld, got %lld in row %lld",
                            (long long)one.most_labels, (long long)one.counts[n], (long long)n);
        for (int64_t i = 0; i < one.counts[n]; i++) {
            int64_t label = one.targets[n * one.most_labels + i];
            if (label < 0 || label >= one.classes)
                return cyx_fail(CYX_BAD_DATA, "ctc_loss: expected labels of 0..%lld, got %lld in row %lld",
                                (long long)one.classes - 1, (long long)label, (long long)n);
        }
    }
    one.wide = (one.most_labels + CTC_CHUNK) / CTC_CHUNK * CTC_CHUNK;
    one.record = CTC_BEFORE + 2 * one.wide;
    double work = (double)one.most_steps * ((double)(CTC_WORK * (1 + 2 * gradient)) * (double)one.wide + (double)one.classes);
    cyx_parallel(one.rows, cyx_grain(one.rows, work, CYX_LEAST_WORK), NAME(ctc_body), &one);
    return one.no_memory ? cyx_fail(CYX_NO_MEMORY, "ctc_loss: no memory left for scratch space") : CYX_OK;
}

static void NAME(fill_ctc)(cyx_table table) {
    table[CYX_OP_ctc_loss][DTYPE] = table[CYX_OP_ctc_loss_grad][DTYPE] = NAME(ctc_loss);
}
