// The clipped sum of a linear layer, panel by panel: which operands are packed when, and what waits in which cache.
//
// A panel is a square of 32 output channels by 32 input channels of the weight's gradient.

#pragma once

#include "tiles.hpp"

#ifdef SFUMATO_KERNELS

#include <algorithm>
#include <vector>

namespace {

constexpr int PANEL = 2 * TILE;
constexpr int64_t TOGETHER = 8;     // records that are added up in float32 before they join the sum, at most
constexpr int64_t ABREAST = 2;      // panels that are packed together
constexpr int64_t CACHE = 1 << 20;  // bytes of packed operands that stay in a core's second cache

// A panel of the sum: its first number, how much of it there is, and the panel after it.
struct Part {
    double *place;
    int64_t height, width;
    const double *next;

    // Asks memory for the next panel, a part of it with each of `count` steps.
    void look_ahead(int64_t step, int64_t count, int64_t stride) const {
        for (int64_t row = step * PANEL / count; next && row < (step + 1) * PANEL / count; row++)
            for (int64_t x = 0; x < PANEL; x += 8) _mm_prefetch(next + row * stride + x, _MM_HINT_T1);
    }
};

// The records of weight above zero, and their weights; others are not read.
struct Kept {
    std::vector<int64_t> records;
    std::vector<double> weights;

    Kept(int64_t count, const double *all) {
        for (int64_t record = 0; record < count; record++) {
            if (!(all[record] > 0)) continue;
            records.push_back(record);
            weights.push_back(all[record]);
        }
    }

    int64_t count() const { return int64_t(records.size()); }
};

// Some of a chunk's records, one after the other.
struct Span {
    int64_t first, count;
};

// Calls `add(span, part, a, b)` for every panel of the sum with both operands packed, for a span of the `count` records
// after the other. A span is as long as the smaller operand, whole, fits into a core's second cache, where it stays;
// panels of the larger one go by. So memory is read once, which is what a sum takes most of its time for. Where not even
// TOGETHER records fit, only some panels of the smaller operand stay at a time, and those of the larger one go by again.
//
// `pack_a(record, panel, into)` and `pack_b` write `each` numbers.
template <typename Number, typename PackA, typename PackB, typename Add>
void by_panels(const Layer &line, int64_t count, int64_t each, PackA pack_a, PackB pack_b, double *total,
               float *scratch, Add add) {
    const int64_t columns = up(line.channels, PANEL) / PANEL, lines = up(line.out_channels, PANEL) / PANEL;
    const bool rows_stay = lines < columns;
    const int64_t staying = rows_stay ? lines : columns, passing = rows_stay ? columns : lines;
    const int64_t bytes = each * int64_t(sizeof(Number)), fitting = CACHE / (bytes * staying) / TOGETHER * TOGETHER;
    const int64_t records = std::clamp(fitting, std::min(TOGETHER, count), count), size = records * each;
    const int64_t together = std::clamp<int64_t>(CACHE / (bytes * records), 1, staying);
    auto *held = reinterpret_cast<Number *>(scratch), *other = held + together * size;
    // Panels of a record follow each other, because memory is slow to hand out single cache lines of long rows.
    const auto pack = [&](bool rows, const Span &span, int64_t first, int64_t panels, Number *into) {
        for (int64_t n = 0; n < span.count; n++)
            for (int64_t k = 0; k < panels; k++) {
                Number *place = into + k * size + n * each;
                rows ? pack_a(span.first + n, first + k, place) : pack_b(span.first + n, first + k, place);
            }
    };
    for (Span span{0, records}; span.first < count; span.first += records) {
        span.count = std::min(records, count - span.first);
        for (int64_t begin = 0; begin < staying; begin += together) {
            const int64_t end = std::min(begin + together, staying);
            pack(rows_stay, span, begin, end - begin, held);
            for (int64_t m = 0; m < passing; m += ABREAST) {
                const int64_t abreast = std::min(ABREAST, passing - m);
                pack(!rows_stay, span, m, abreast, other);
                for (int64_t k = 0; k < abreast; k++)
                    for (int64_t n = begin; n < end; n++) {
                        const int64_t i = (rows_stay ? n : m + k) * PANEL, j = (rows_stay ? m + k : n) * PANEL;
                        const int64_t height = line.out_channels - i, width = line.channels - j;
                        double *place = total + line.weight_at + i * line.channels + j;
                        const Part part{place, height < PANEL ? height : PANEL, width < PANEL ? width : PANEL,
                                        n + 1 < end ? place + PANEL * (rows_stay ? line.channels : 1) : nullptr};
                        const Number *kept = held + (n - begin) * size, *passed = other + k * size;
                        add(span, part, rows_stay ? kept : passed, rows_stay ? passed : kept);
                    }
            }
        }
    }
}

}  // namespace

#endif
