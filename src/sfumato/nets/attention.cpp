// Attention over short sequences (attention.py): one head of one row at a time, in a core's first caches; in float32, or by
// AMX where numbers are bfloat16 and heads are multiples of 32.

#include <algorithm>
#include <cmath>
#include <vector>

#include "processor.hpp"

extern "C" {

// `qkv` is rows x positions x 3 x heads x size numbers, bfloat16 where `half`, else float; `size` is a multiple of 16.
// Writes rows x positions x heads x size of them to `out`, and what the backward pass at the same level needs to `moments`:
// rows x heads x 2 x positions, rounded up to 16, in an order of the level's own. Where `causal`, no position sees a later
// one.
int attention_forward(int level, int half, const void *qkv, int64_t rows, int64_t positions, int64_t heads,
                      int64_t size, int causal, void *out, float *moments);
// The gradient by `qkv` from that by `out`; `moments` as the forward pass wrote them.
int attention_backward(int level, int half, const void *qkv, float *moments, const void *gradient, int64_t rows,
                       int64_t positions, int64_t heads, int64_t size, int causal, void *by_qkv);
}

#ifdef SFUMATO_KERNELS

namespace {

// The heads of one row; positions are queries and keys.
struct Heads {
    int64_t positions, count, size;
    bool causal;
    int64_t padded = (positions + 15) / 16 * 16;  // positions, in whole registers

    int64_t row() const { return count * size; }                                            // numbers of a position
    int64_t keys(int64_t end) const { return causal ? std::min(positions, end) : positions; }  // of queries before `end`
    float factor() const { return 1 / std::sqrt(float(size)); }
};

// Memory of one head: shares are positions x positions, all else is positions x size. What lies beyond the last position
// of q, k, v and their gradients is zero.
struct Room {
    std::vector<float> held;
    float *shares, *by_shares, *q, *k, *v, *gradient, *columns, *out;

    explicit Room(const Heads &heads) {
        const int64_t square = heads.padded * heads.padded, part = heads.padded * heads.size;
        held.assign(size_t(2 * square + 6 * part), 0.0f);
        float *place = held.data();
        for (float **one : {&shares, &by_shares}) *one = place, place += square;
        for (float **one : {&q, &k, &v, &gradient, &columns, &out}) *one = place, place += part;
    }
};

#define LOOPS "attention_loops.hpp"
#include "levels.hpp"

#include "attention_tiles.hpp"

bool by_tiles(int level, int half, const Heads &heads) { return level == 3 && half && heads.size % amx::PLACES == 0; }

// Calls `use(in, at, moments)` for each head of each row: its places in `qkv`, in the output, and in the moments.
template <typename Use> void each_head(const Heads &heads, int64_t rows, Use use) {
    const int64_t numbers = heads.positions * heads.row();
    for (int64_t n = 0; n < rows; n++)
        for (int64_t head = 0; head < heads.count; head++)
            use(3 * n * numbers + head * heads.size, n * numbers + head * heads.size,
                2 * (n * heads.count + head) * heads.padded);
}

}  // namespace

int attention_forward(int level, int half, const void *qkv, int64_t rows, int64_t positions, int64_t count,
                      int64_t size, int causal, void *out, float *moments) {
    if (level < 1 || size % 16) return 1;
    const Heads heads{positions, count, size, causal != 0};
    const int64_t row = heads.row();
    if (by_tiles(level, half, heads)) {
        const amx::Tiles tiles;
        amx::Desk desk(heads);
        each_head(heads, rows, [&](int64_t in, int64_t at, int64_t moment) {
            const auto *q = static_cast<const uint16_t *>(qkv) + in;
            amx::attend(heads, q, q + row, q + 2 * row, desk, static_cast<uint16_t *>(out) + at, moments + moment);
        });
        return 0;
    }
    Room room(heads);
    each_head(heads, rows, [&](int64_t in, int64_t at, int64_t moment) {
        AT(level, half, attend)(heads, moved(qkv, in, half), moved(qkv, in + row, half), moved(qkv, in + 2 * row, half),
                                room, moved(out, at, half), moments + moment);
    });
    return 0;
}

int attention_backward(int level, int half, const void *qkv, float *moments, const void *gradient, int64_t rows,
                       int64_t positions, int64_t count, int64_t size, int causal, void *by_qkv) {
    if (level < 1 || size % 16) return 1;
    const Heads heads{positions, count, size, causal != 0};
    const int64_t row = heads.row();
    if (by_tiles(level, half, heads)) {
        const amx::Tiles tiles;
        amx::Desk desk(heads);
        each_head(heads, rows, [&](int64_t in, int64_t at, int64_t moment) {
            const auto *q = static_cast<const uint16_t *>(qkv) + in;
            auto *by_q = static_cast<uint16_t *>(by_qkv) + in;
            amx::attend_backward(heads, q, q + row, q + 2 * row, static_cast<const uint16_t *>(gradient) + at,
                                 moments + moment, desk, by_q, by_q + row, by_q + 2 * row);
        });
        return 0;
    }
    Room room(heads);
    each_head(heads, rows, [&](int64_t in, int64_t at, int64_t moment) {
        AT(level, half, attend_backward)(heads, moved(qkv, in, half), moved(qkv, in + row, half),
                                         moved(qkv, in + 2 * row, half), moved(gradient, at, half), moments + moment,
                                         room, moved(by_qkv, in, half), moved(by_qkv, in + row, half),
                                         moved(by_qkv, in + 2 * row, half));
    });
    return 0;
}

#else

int attention_forward(int, int, const void *, int64_t, int64_t, int64_t, int64_t, int, void *, float *) { return 1; }
int attention_backward(int, int, const void *, float *, const void *, int64_t, int64_t, int64_t, int64_t, int, void *) {
    return 1;
}

#endif
