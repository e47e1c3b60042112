// Clipped sums for networks whose gradient fits into a core's cache.
//
// Record by record: the whole gradient is formed, measured where it lies, and added, scaled, to the sum in double
// precision. The norm is taken of exactly the values that are added.

#pragma once

#include "tiles.hpp"

struct Task {
    int64_t records, rows;  // rows of the batch that belong to one record
    int64_t length;         // floats of one record's gradient; zero where no layer here has its place
    const double *squares;  // squared norm that each record has in layers that are added elsewhere
    const uint8_t *usable;  // records; others are skipped
    double clip_norm, gamma;  // weight = clip_norm / (norm + gamma), or clip_norm / max(norm, clip_norm) if gamma < 0
    double *weights;        // records; out
    double *total;          // length; added to
    float *scratch;         // scratch_floats() floats, 64-byte aligned
};

#ifdef SFUMATO_KERNELS

namespace {

// `form(layer, record, gradient, scratch)` writes a layer's part of a record's gradient.
template <typename Form, typename Square, typename Add>
void add_records(const Layer *layers, int count, const Task &task, Form form, Square squared_norm, Add add_scaled) {
    float *gradient = task.scratch;
    std::memset(gradient, 0, sizeof(float) * size_t(task.length));
    for (int64_t record = 0; record < task.records; record++) {
        task.weights[record] = 0;
        if (!task.usable[record]) continue;
        for (int i = 0; i < count; i++) form(layers[i], record, gradient, gradient + up(task.length, TILE));
        const double norm = std::sqrt(squared_norm(gradient, task.length) + task.squares[record]);
        if (!std::isfinite(norm)) continue;  // weight zero would not do: zero times NaN is NaN
        const double raised = norm * (1 + 1e-9);  // covers the rounding of squares, sum and root
        task.weights[record] = task.gamma >= 0 ? task.clip_norm / (raised + task.gamma)
                                               : task.clip_norm / (raised > task.clip_norm ? raised : task.clip_norm);
        add_scaled(task.weights[record], gradient, task.total, task.length);
    }
}

}  // namespace

#endif
