// Attention in bfloat16 on processors with AMX: products of tiles of 16 x 16 numbers, each a sum over 32 places.
//
// Left operands are rows as they lie in memory. Right ones hold two places side by side, "pairs": rows are "turned" where
// places are numbers of a row, and "paired" where places are rows.

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,amx-tile,amx-bf16")))

namespace amx {

using avx512::all, avx512::at_least, avx512::exponential, avx512::Floats, avx512::lanes, avx512::sum_of;
using Half = uint16_t;  // a bfloat16

constexpr int64_t TILE = 16, PLACES = 32, NUMBERS = TILE * PLACES;

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};

alignas(64) const TileConfig WHOLE_TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Other libraries remember which configuration they left behind, so it is put back.
struct Tiles {
    alignas(64) TileConfig before;

    TARGET Tiles() {
        _tile_storeconfig(&before);
        _tile_loadconfig(&WHOLE_TILES);
    }

    TARGET ~Tiles() {
        if (before.palette)
            _tile_loadconfig(&before);
        else
            _tile_release();
    }
};

// A left operand, whose tiles are 32 numbers apart, and tiles of right ones: `across` to the next 16 columns, `down` to
// the next 32 places.
struct Operands {
    const Half *a;
    int64_t a_row;
    const Half *b;
    int64_t across, down;
};

template <int COUNT> TARGET inline void multiply_tiles(const Operands &given, int64_t places, float *out, int64_t stride) {
    _tile_zero(0);
    if (COUNT > 1) _tile_zero(1);
    if (COUNT > 2) _tile_zero(2);
    if (COUNT > 3) _tile_zero(3);
    for (int64_t k = 0; k < places / PLACES; k++) {
        const Half *b = given.b + k * given.down;
        _tile_loadd(4, given.a + k * PLACES, given.a_row * 2);
        _tile_loadd(5, b, 64);
        _tile_dpbf16ps(0, 4, 5);
        if (COUNT > 1) {
            _tile_loadd(6, b + given.across, 64);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (COUNT > 2) {
            _tile_loadd(7, b + 2 * given.across, 64);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (COUNT > 3) {
            _tile_loadd(5, b + 3 * given.across, 64);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, out, stride * 4);
    if (COUNT > 1) _tile_stored(1, out + TILE, stride * 4);
    if (COUNT > 2) _tile_stored(2, out + 2 * TILE, stride * 4);
    if (COUNT > 3) _tile_stored(3, out + 3 * TILE, stride * 4);
}

// out = a b: 16 rows and `columns` columns, a multiple of 16, summed over `places`, a multiple of 32.
TARGET void multiply(Operands given, int64_t places, int64_t columns, float *out, int64_t stride) {
    asm volatile("" ::: "memory");  // intrinsics that load tiles do not say that they read memory
    for (; columns >= 4 * TILE; columns -= 4 * TILE, out += 4 * TILE, given.b += 4 * given.across)
        multiply_tiles<4>(given, places, out, stride);
    if (columns == 3 * TILE) multiply_tiles<3>(given, places, out, stride);
    if (columns == 2 * TILE) multiply_tiles<2>(given, places, out, stride);
    if (columns == TILE) multiply_tiles<1>(given, places, out, stride);
}

TARGET inline __m512i joined(const Half *one, const Half *other) {  // 16 numbers of each, taking turns
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(one)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(other)));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

TARGET inline void transpose(__m512i *rows) { avx512::transpose(reinterpret_cast<Floats *>(rows)); }

// Rows of `width` numbers as right operands for sums over a row's numbers: rows / 16 x width / 32 tiles.
TARGET void turn(const Half *rows, int64_t count, int64_t width, Half *tiles) {
    for (int64_t r = 0; r < count; r += TILE)
        for (int64_t c = 0; c < width; c += PLACES, tiles += NUMBERS) {
            alignas(64) __m512i block[TILE];
            for (int k = 0; k < TILE; k++) block[k] = _mm512_loadu_si512(rows + (r + k) * width + c);
            transpose(block);
            for (int k = 0; k < TILE; k++) _mm512_storeu_si512(tiles + k * PLACES, block[k]);
        }
}

// Rows as right operands for sums over rows: rows / 32 x width / 16 tiles.
TARGET void join(const Half *rows, int64_t count, int64_t width, Half *tiles) {
    for (int64_t r = 0; r < count; r += PLACES)
        for (int64_t c = 0; c < width; c += TILE, tiles += NUMBERS)
            for (int64_t k = 0; k < TILE; k++) {
                const Half *row = rows + (r + 2 * k) * width + c;
                _mm512_storeu_si512(tiles + k * PLACES, joined(row, row + width));
            }
}

// 16 columns of a matrix from row `first` on, up to row `end`, as rows of a left operand, `end` numbers apart.
TARGET void stand(const Half *columns, int64_t width, int64_t first, int64_t end, Half *rows) {
    for (int64_t r = first; r < end; r += PLACES) {
        alignas(64) __m512i block[TILE];
        for (int64_t k = 0; k < TILE; k++) {
            const Half *row = columns + (r + 2 * k) * width;
            block[k] = joined(row, row + width);
        }
        transpose(block);
        for (int64_t k = 0; k < TILE; k++) _mm512_storeu_si512(rows + k * end + r, block[k]);
    }
}

// Memory of one head; rows beyond the last position stay zero.
struct Desk {
    int64_t positions, padded, size;
    std::vector<Half> held;
    std::vector<float> wide;
    Half *q, *k, *v, *gradient, *turned, *other_turned, *paired, *other_paired, *shares, *by_scores, *standing;
    float *scores, *by_shares, *out;

    explicit Desk(const Heads &heads) : positions(heads.positions), size(heads.size) {
        padded = (positions + PLACES - 1) / PLACES * PLACES;
        const int64_t part = padded * size, square = padded * padded;
        held.assign(size_t(8 * part + 2 * square + TILE * padded + PLACES), 0);
        wide.assign(size_t(2 * TILE * padded + TILE * size + TILE), 0);
        Half *place = held.data();
        place += (64 - reinterpret_cast<uintptr_t>(place) % 64) % 64 / 2;
        for (Half **one : {&q, &k, &v, &gradient, &turned, &other_turned, &paired, &other_paired})
            *one = place, place += part;
        for (Half **one : {&shares, &by_scores}) *one = place, place += square;
        standing = place;
        float *number = wide.data();
        number += (64 - reinterpret_cast<uintptr_t>(number) % 64) % 64 / 4;
        scores = number, by_shares = scores + TILE * padded, out = by_shares + TILE * padded;
    }

    // A head's rows, which lie `stride` numbers apart.
    TARGET void gather(const Half *from, int64_t stride, Half *rows) const {
        for (int64_t t = 0; t < positions; t++)
            for (int64_t c = 0; c < size; c += PLACES)
                _mm512_storeu_si512(rows + t * size + c, _mm512_loadu_si512(from + t * stride + c));
    }
};

TARGET inline void store(Half *to, Floats low, Floats high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

TARGET inline Floats at(const float *from) { return (Floats)_mm512_loadu_ps(from); }

// Up to 16 rows of `out` from `row` on, each times a factor of its own, to where a head's rows lie.
TARGET void scatter(const Desk &desk, int64_t row, const float *factors, Half *to, int64_t stride) {
    for (int64_t r = 0; r < TILE && row + r < desk.positions; r++)
        for (int64_t c = 0; c < desk.size; c += PLACES) {
            const float factor = factors ? factors[r] : 1;
            const float *from = desk.out + r * desk.size + c;
            store(to + (row + r) * stride + c, at(from) * factor, at(from + TILE) * factor);
        }
}

TARGET inline Floats within(Floats value, int64_t first, int64_t seen, float otherwise) {
    if (first + TILE <= seen) return value;
    return lanes() < float(seen - first) ? value : all(otherwise);
}

TARGET void attend(const Heads &heads, const Half *q, const Half *k, const Half *v, Desk &desk, Half *out,
                   float *moments) {
    const int64_t size = heads.size, padded = desk.padded, row = heads.row();
    const float factor = heads.factor();
    desk.gather(q, 3 * row, desk.q);
    desk.gather(k, 3 * row, desk.k);
    desk.gather(v, 3 * row, desk.v);
    turn(desk.k, padded, size, desk.turned);
    join(desk.v, padded, size, desk.paired);
    for (int64_t query = 0; query < heads.positions; query += TILE) {
        const int64_t keys = heads.keys(query + TILE), width = (keys + PLACES - 1) / PLACES * PLACES;
        multiply({desk.q + query * size, size, desk.turned, size / PLACES * NUMBERS, NUMBERS}, size,
                 (keys + TILE - 1) / TILE * TILE, desk.scores, padded);
        float inverses[TILE];
        for (int64_t r = 0; r < TILE; r++) {
            const int64_t seen = heads.keys(query + r + 1);
            const float *scores = desk.scores + r * padded;
            Half *shares = desk.shares + r * padded;
            Floats most = all(-INFINITY), sum = all(0);
            for (int64_t x = 0; x < seen; x += TILE) {
                const Floats score = within(at(scores + x), x, seen, -INFINITY);
                most = most > score ? most : score;
            }
            const float largest = _mm512_reduce_max_ps((__m512)most);
            for (int64_t x = 0; x < width; x += PLACES) {
                Floats two[2] = {all(0), all(0)};
                for (int64_t half = 0; half < 2; half++) {
                    const int64_t place = x + half * TILE;
                    if (place < seen) two[half] = within(exponential((at(scores + place) - largest) * factor), place, seen, 0);
                    sum += two[half];
                }
                store(shares + x, two[0], two[1]);
            }
            inverses[r] = 1 / _mm512_reduce_add_ps((__m512)sum);
            moments[2 * (query + r)] = largest, moments[2 * (query + r) + 1] = inverses[r];
        }
        multiply({desk.shares, padded, desk.paired, NUMBERS, size / TILE * NUMBERS}, width, size, desk.out, size);
        scatter(desk, query, inverses, out, row);
    }
}

TARGET void attend_backward(const Heads &heads, const Half *q, const Half *k, const Half *v, const Half *gradient,
                            const float *moments, Desk &desk, Half *by_q, Half *by_k, Half *by_v) {
    const int64_t size = heads.size, padded = desk.padded, row = heads.row();
    const int64_t across = size / PLACES * NUMBERS, down = size / TILE * NUMBERS;
    const float factor = heads.factor();
    desk.gather(q, 3 * row, desk.q);
    desk.gather(k, 3 * row, desk.k);
    desk.gather(v, 3 * row, desk.v);
    desk.gather(gradient, row, desk.gradient);
    turn(desk.k, padded, size, desk.turned);
    turn(desk.v, padded, size, desk.other_turned);
    join(desk.k, padded, size, desk.paired);
    for (int64_t query = 0; query < padded; query += TILE) {
        const int64_t keys = heads.keys(query + TILE), width = (keys + PLACES - 1) / PLACES * PLACES;
        const int64_t columns = (keys + TILE - 1) / TILE * TILE;
        multiply({desk.q + query * size, size, desk.turned, across, NUMBERS}, size, columns, desk.scores, padded);
        multiply({desk.gradient + query * size, size, desk.other_turned, across, NUMBERS}, size, columns,
                 desk.by_shares, padded);
        for (int64_t r = 0; r < TILE; r++) {
            const int64_t seen = query + r < heads.positions ? heads.keys(query + r + 1) : 0;
            float *scores = desk.scores + r * padded, *by_shares = desk.by_shares + r * padded;
            const float *known = moments + 2 * (query + r);  // of rows that see nothing there is none
            const float largest = seen ? known[0] : 0, inverse = seen ? known[1] : 0;
            Half *shares = desk.shares + (query + r) * padded, *by_scores = desk.by_scores + (query + r) * padded;
            Floats sum = all(0);
            for (int64_t x = 0; x < seen; x += TILE) {
                const Floats share = within(exponential((at(scores + x) - largest) * factor) * inverse, x, seen, 0);
                _mm512_storeu_ps(scores + x, (__m512)share);
                sum += within(share * at(by_shares + x), x, seen, 0);
            }
            const float mean = seen ? _mm512_reduce_add_ps((__m512)sum) : 0;
            for (int64_t x = 0; x < width; x += PLACES) {
                Floats share[2] = {all(0), all(0)}, by_score[2] = {all(0), all(0)};
                for (int64_t half = 0; half < 2; half++) {
                    const int64_t place = x + half * TILE;
                    if (place >= seen) continue;
                    share[half] = at(scores + place);
                    by_score[half] = within(share[half] * (at(by_shares + place) - mean) * factor, place, seen, 0);
                }
                store(shares + x, share[0], share[1]);
                store(by_scores + x, by_score[0], by_score[1]);
            }
        }
        multiply({desk.by_scores + query * padded, padded, desk.paired, NUMBERS, down}, width, size, desk.out, size);
        scatter(desk, query, nullptr, by_q, 3 * row);
    }
    join(desk.q, padded, size, desk.paired);
    join(desk.gradient, padded, size, desk.other_paired);
    for (int64_t key = 0; key < heads.positions; key += TILE) {
        const int64_t first = heads.causal ? key / PLACES * PLACES : 0, begin = first / PLACES * down;
        for (const bool values : {false, true}) {
            stand((values ? desk.shares : desk.by_scores) + key, padded, first, padded, desk.standing);
            multiply({desk.standing + first, padded, (values ? desk.other_paired : desk.paired) + begin, NUMBERS, down},
                     padded - first, size, desk.out, size);
            scatter(desk, key, nullptr, values ? by_v : by_k, 3 * row);
        }
    }
}

}  // namespace amx

#undef TARGET
