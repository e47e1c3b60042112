// Gradients that are written out whole, in float32: what convolution.cpp does for bfloat16.
//
// Nothing is packed: channels of a pixel are neighbours in memory, so that a place of the kernel is a product over the
// pixels that it sees, and pixels in the padding are left out.

#include "clipping.hpp"
#include "single.hpp"

extern "C" {

int single_clipped_sum(int level, const Layer *layers, int count, const Task *task);  // as clipped_sum
int64_t single_sum_scratch_floats(const Layer *layers, int count, const Task *task);
}

#ifdef SFUMATO_KERNELS

namespace {

constexpr int64_t MOST = 2 * avx512::LANES;  // channels that are multiplied at once

// Pixels with zeros up to a multiple of so many channels; in place where that is what they have.
struct Pixels {
    const float *values;
    int64_t channels;

    Pixels(const float *from, int64_t pixels, int64_t channels, int64_t multiple, float *&scratch)
        : values(from), channels(up(channels, multiple)) {
        if (this->channels == channels) return;
        values = scratch;
        for (int64_t x = 0; x < pixels; x++, scratch += this->channels) {
            std::memcpy(scratch, from + x * channels, sizeof(float) * size_t(channels));
            std::memset(scratch + channels, 0, sizeof(float) * size_t(this->channels - channels));
        }
    }
};

// Output positions that see something, not padding, at a place of the kernel.
struct Seen {
    int64_t first, count, input;  // the input position that the first one sees

    Seen(int64_t place, int64_t stride, int64_t padding, int64_t size, int64_t out) {
        const int64_t before = padding - place;  // output y sees input y stride - before
        first = before > 0 ? up(before, stride) / stride : 0;
        const int64_t last = size - 1 + before < 0 ? -1 : (size - 1 + before) / stride;
        const int64_t end = last + 1 < out ? last + 1 : out;
        count = end > first ? end - first : 0;
        input = first * stride - before;
    }
};

// One record's gradient of one layer, from its rows of the batch.
void instantiate(int level, const Layer &layer, int64_t record, int64_t rows, float *gradient, float *scratch) {
    const int64_t in = int64_t(layer.height) * layer.width, out = int64_t(layer.out_height) * layer.out_width;
    const float *all_g = gradient_of(layer, record * rows);
    if (layer.bias_at >= 0) AT(level, add_up)(all_g, rows * out, layer.out_channels, gradient + layer.bias_at);
    if (layer.weight_at < 0) return;
    const Pixels g(all_g, rows * out, layer.out_channels, level == 2 ? avx512::ROWS : avx2::ROWS, scratch);
    const Pixels a(activation_of(layer, record * rows), rows * in, layer.channels,
                   2 * (level == 2 ? avx512::LANES : avx2::LANES), scratch);
    const int64_t stride = int64_t(layer.kernel_h) * layer.kernel_w * layer.channels;
    float *place = gradient + layer.weight_at;
    for (int ky = 0; ky < layer.kernel_h; ky++)
        for (int kx = 0; kx < layer.kernel_w; kx++, place += layer.channels) {
            const Seen y(ky, layer.stride_h, layer.pad_h, layer.height, layer.out_height);
            const Seen x(kx, layer.stride_w, layer.pad_w, layer.width, layer.out_width);
            const int64_t g_line = layer.out_width * g.channels, a_line = layer.width * a.channels;
            const bool some = y.count > 0 && x.count > 0;
            const Window window{some ? rows : 0,
                                y.count,
                                x.count,
                                g.values + (some ? y.first * g_line + x.first * g.channels : 0),
                                a.values + (some ? y.input * a_line + x.input * a.channels : 0),
                                out * g.channels,
                                g_line,
                                g.channels,
                                in * a.channels,
                                layer.stride_h * a_line,
                                layer.stride_w * a.channels};
            AT(level, multiply_channels)(window, layer.out_channels, layer.channels, place, stride);
        }
}

}  // namespace

int64_t single_sum_scratch_floats(const Layer *layers, int count, const Task *task) {
    int64_t most = 0;
    for (int i = 0; i < count; i++) {
        const Layer &layer = layers[i];
        const int64_t in = int64_t(layer.height) * layer.width, out = int64_t(layer.out_height) * layer.out_width;
        most = std::max(most, task->rows * (in * up(layer.channels, MOST) + out * up(layer.out_channels, MOST)));
    }
    return up(task->length, TILE) + most;
}

int single_clipped_sum(int level, const Layer *layers, int count, const Task *task) {
    if (level < 1) return 1;
    const auto form = [&](const Layer &layer, int64_t record, float *gradient, float *scratch) {
        instantiate(level, layer, record, task->rows, gradient, scratch);
    };
    add_records(layers, count, *task, form, AT(level, square_of), AT(level, add_scaled));
    return 0;
}

#else

int64_t single_sum_scratch_floats(const Layer *, int, const Task *) { return 0; }
int single_clipped_sum(int, const Layer *, int, const Task *) { return 1; }

#endif
