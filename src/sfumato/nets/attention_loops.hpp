// Included once for each kind of processor, after vectors.hpp. Matrices of shares have a row for every key, so that what is
// done for each query is done for a register of them.

constexpr int ROWS = LANES == 16 ? 8 : 4;  // of a product, in registers

// What of a product is not known to be zero, or of no use, where queries see no later keys; in whole blocks of rows and
// registers.
enum class Part {
    WHOLE,
    AFTER,  // columns from a row's own place on
    UP_TO,  // sums up to a row's own place
    FROM    // sums from a row's own place on
};

// A left operand: rows and inner places are so many numbers apart.
struct Left {
    const float *values;
    int64_t row, step;
};

template <int VECTORS>
TARGET inline void multiply_rows(const Left &a, const float *b, int64_t columns, int64_t begin, int64_t end,
                                 float *out) {
    Floats sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < VECTORS; v++) sums[row][v] = all(0);
    for (int64_t k = begin; k < end; k++) {
        Floats right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = load<false>(b, k * columns + v * LANES);
        for (int row = 0; row < ROWS; row++) {
            const float left = a.values[row * a.row + k * a.step];
            for (int v = 0; v < VECTORS; v++) sums[row][v] += left * right[v];
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < VECTORS; v++) store<false>(out, row * columns + v * LANES, sums[row][v]);
}

// out = a b, of `rows` x `inner` and `inner` x `columns` numbers; rows and columns are multiples of 16.
TARGET void multiply(Left a, const float *b, int64_t rows, int64_t inner, int64_t columns, Part part, float *out) {
    for (int64_t i = 0; i < rows; i += ROWS, a.values += ROWS * a.row, out += ROWS * columns) {
        const int64_t begin = part == Part::FROM ? i : 0, end = part == Part::UP_TO ? i + ROWS : inner;
        int64_t j = part == Part::AFTER ? i / LANES * LANES : 0;
        for (; j + 2 * LANES <= columns; j += 2 * LANES)
            multiply_rows<2>(a, b + j, columns, begin, end, out + j);
        if (j < columns) multiply_rows<1>(a, b + j, columns, begin, end, out + j);
    }
}

// One head's rows of `from` as floats, times a factor.
template <bool HALF>
TARGET void gather(const Heads &heads, const void *from, int64_t stride, float factor, float *rows) {
    for (int64_t t = 0; t < heads.positions; t++)
        for (int64_t c = 0; c < heads.size; c += LANES)
            store<false>(rows, t * heads.size + c, load<HALF>(from, t * stride + c) * factor);
}

template <bool HALF> TARGET void scatter(const Heads &heads, const float *rows, float factor, void *to, int64_t stride) {
    for (int64_t t = 0; t < heads.positions; t++)
        for (int64_t c = 0; c < heads.size; c += LANES)
            store<HALF>(to, t * stride + c, load<false>(rows, t * heads.size + c) * factor);
}

TARGET void turn(const Heads &heads, const float *rows, float *columns) {
    for (int64_t t = 0; t < heads.padded; t += LANES)
        for (int64_t c = 0; c < heads.size; c += LANES) {
            alignas(64) Floats block[LANES];
            for (int k = 0; k < LANES; k++) block[k] = load<false>(rows, (t + k) * heads.size + c);
            transpose(block);
            for (int k = 0; k < LANES; k++) store<false>(columns, (c + k) * heads.padded + t, block[k]);
        }
}

// What a register of queries, from `query` on, has of a key that some of them do not see.
TARGET inline Floats seen(const Heads &heads, int64_t query, int64_t key, Floats value, float otherwise) {
    if (!heads.causal || key <= query) return value;
    return lanes() < float(key - query) ? all(otherwise) : value;
}

// Scores to shares. Writes each query's largest score, and the inverse of its sum, to `moments`, or takes them from there.
template <bool KNOWN> TARGET void soften(const Heads &heads, float *scores, float *moments) {
    const int64_t padded = heads.padded;
    for (int64_t query = 0; query < padded; query += LANES, moments += 2 * LANES) {
        const int64_t keys = heads.keys(query + LANES);
        Floats most = all(-INFINITY), sum = all(0);
        for (int64_t key = 0; key < keys && !KNOWN; key++) {
            const Floats score = seen(heads, query, key, load<false>(scores, key * padded + query), -INFINITY);
            most = most > score ? most : score;
        }
        most = KNOWN ? load<false>(moments, 0) : most;
        for (int64_t key = 0; key < keys; key++) {
            const Floats score = load<false>(scores, key * padded + query);
            const Floats share = seen(heads, query, key, exponential(score - most), 0);
            sum += share;
            store<false>(scores, key * padded + query, share);
        }
        const Floats factor = KNOWN ? load<false>(moments, LANES) : inverse(sum);
        for (int64_t key = 0; key < keys; key++)
            store<false>(scores, key * padded + query, load<false>(scores, key * padded + query) * factor);
        if (KNOWN) continue;
        store<false>(moments, 0, most);
        store<false>(moments, LANES, factor);
    }
}

// Gradients by shares to gradients by scores.
TARGET void harden(const Heads &heads, const float *shares, float *gradients) {
    const int64_t padded = heads.padded;
    for (int64_t query = 0; query < padded; query += LANES) {
        const int64_t keys = heads.keys(query + LANES);
        Floats mean = all(0);
        for (int64_t at = query; at < keys * padded; at += padded)
            mean += load<false>(shares, at) * load<false>(gradients, at);
        for (int64_t at = query; at < keys * padded; at += padded)
            store<false>(gradients, at, load<false>(shares, at) * (load<false>(gradients, at) - mean));
    }
}

template <bool HALF>
TARGET void attend(const Heads &heads, const void *q, const void *k, const void *v, Room &room, void *out,
                   float *moments) {
    const int64_t size = heads.size, padded = heads.padded, row = heads.row();
    gather<HALF>(heads, q, 3 * row, heads.factor(), room.q);
    gather<HALF>(heads, k, 3 * row, 1, room.k);
    gather<HALF>(heads, v, 3 * row, 1, room.v);
    turn(heads, room.q, room.columns);
    multiply({room.k, size, 1}, room.columns, padded, size, padded, heads.causal ? Part::AFTER : Part::WHOLE,
             room.shares);
    soften<false>(heads, room.shares, moments);
    multiply({room.shares, 1, padded}, room.v, padded, padded, size, heads.causal ? Part::UP_TO : Part::WHOLE, room.out);
    scatter<HALF>(heads, room.out, 1, out, row);
}

template <bool HALF>
TARGET void attend_backward(const Heads &heads, const void *q, const void *k, const void *v, const void *gradient,
                            float *moments, Room &room, void *by_q, void *by_k, void *by_v) {
    const int64_t size = heads.size, padded = heads.padded, row = heads.row();
    const Part after = heads.causal ? Part::AFTER : Part::WHOLE, up_to = heads.causal ? Part::UP_TO : Part::WHOLE;
    const Part from = heads.causal ? Part::FROM : Part::WHOLE;
    gather<HALF>(heads, q, 3 * row, heads.factor(), room.q);
    gather<HALF>(heads, k, 3 * row, 1, room.k);
    gather<HALF>(heads, v, 3 * row, 1, room.v);
    gather<HALF>(heads, gradient, row, 1, room.gradient);
    turn(heads, room.q, room.columns);
    multiply({room.k, size, 1}, room.columns, padded, size, padded, after, room.shares);
    soften<true>(heads, room.shares, moments);
    multiply({room.shares, padded, 1}, room.gradient, padded, padded, size, from, room.out);
    scatter<HALF>(heads, room.out, 1, by_v, 3 * row);
    turn(heads, room.gradient, room.columns);
    multiply({room.v, size, 1}, room.columns, padded, size, padded, after, room.by_shares);
    harden(heads, room.shares, room.by_shares);
    multiply({room.by_shares, 1, padded}, room.k, padded, padded, size, up_to, room.out);
    scatter<HALF>(heads, room.out, heads.factor(), by_q, 3 * row);
    multiply({room.by_shares, padded, 1}, room.q, padded, padded, size, from, room.out);
    scatter<HALF>(heads, room.out, 1, by_k, 3 * row);
}
