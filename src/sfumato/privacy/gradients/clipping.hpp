// Clipped sums of gradients that are written out whole: of small networks, in a core's cache, and of convolutions.
//
// Record by record: every layer's gradient is formed, measured where it lies, and added, scaled, to the sum in double
// precision. The norm is taken of exactly the values that are added.

#pragma once

#include "tiles.hpp"

struct Task {
    int64_t records, rows;  // rows of the batch that belong to one record
    int64_t length;         // floats of one record's gradient, of all layers
    const double *squares;  // squared norm that each record has in layers that are added elsewhere
    const uint8_t *usable;  // records; others are skipped
    double clip_norm, gamma;  // weight = clip_norm / (norm + gamma), or clip_norm / max(norm, clip_norm) if gamma < 0
    double *weights;        // records; out
    double *total;          // length; added to
    float *scratch;         // scratch_floats() floats, 64-byte aligned
};

#ifdef SFUMATO_KERNELS

namespace {

// Calls `use(place, numbers)` for the parts of a layer in a record's gradient.
template <typename Use> void each_part(const Layer &layer, Use use) {
    if (layer.weight_at >= 0)
        use(layer.weight_at, int64_t(layer.out_channels) * layer.kernel_h * layer.kernel_w * layer.channels);
    if (layer.bias_at >= 0) use(layer.bias_at, int64_t(layer.out_channels));
}

// `form(layer, record, gradient, scratch)` writes a layer's part of a record's gradient.
template <typename Form, typename Square, typename Add>
void add_records(const Layer *layers, int count, const Task &task, Form form, Square squared_norm, Add add_scaled) {
    float *gradient = task.scratch;
    for (int64_t record = 0; record < task.records; record++) {
        task.weights[record] = 0;
        if (!task.usable[record]) continue;
        double square = task.squares[record];
        for (int i = 0; i < count; i++) {
            form(layers[i], record, gradient, gradient + up(task.length, TILE));
            each_part(layers[i], [&](int64_t at, int64_t size) { square += squared_norm(gradient + at, size); });
        }
        const double norm = std::sqrt(square);
        if (!std::isfinite(norm)) continue;  // weight zero would not do: zero times NaN is NaN
        const double raised = norm * (1 + 1e-9);  // covers the rounding of squares, sum and root
        const double weight = task.gamma >= 0 ? task.clip_norm / (raised + task.gamma)
                                              : task.clip_norm / (raised > task.clip_norm ? raised : task.clip_norm);
        task.weights[record] = weight;
        for (int i = 0; i < count; i++)
            each_part(layers[i],
                      [&](int64_t at, int64_t size) { add_scaled(weight, gradient + at, task.total + at, size); });
    }
}

}  // namespace

#endif
