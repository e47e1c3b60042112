// Tiles of AMX in software, so that code written for them can be tested on processors that have none.
//
// Included before everything else (`-include`), it stands in for the compiler's intrinsics and for the questions to the
// processor whether it has tiles. TDPBF16PS rounds as the manual says (Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2: denormal numbers count as zero, even and odd numbers of the pairs are summed apart, and
// both sums join the tile last); what the hardware answers with an invalid-opcode exception ends the program.

#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace stand_in {

struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};

inline thread_local Config config;
inline thread_local uint8_t tiles[8][16][64];

inline void demand(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "AMX stand-in: %s\n", what);
    std::abort();
}

inline void exists(int tile) {
    demand(config.palette == 1, "tiles are used without a configuration");
    demand(config.rows[tile] && config.column_bytes[tile], "a tile is used that is not configured");
}

inline void load_config(const void *from) {
    Config next;
    std::memcpy(&next, from, sizeof next);
    demand(next.palette <= 1, "there is no such palette");
    for (int tile = 0; next.palette && tile < 8; tile++)
        demand(next.rows[tile] <= 16 && next.column_bytes[tile] <= 64, "a tile is larger than 16 rows of 64 bytes");
    config = next;
    std::memset(tiles, 0, sizeof tiles);
}

inline void store_config(void *into) { std::memcpy(into, &config, sizeof config); }

inline void release() {
    config = Config{};
    std::memset(tiles, 0, sizeof tiles);
}

inline void zero(int tile) {
    exists(tile);
    std::memset(tiles[tile], 0, sizeof tiles[tile]);
}

inline void load(int tile, const void *from, int64_t stride) {
    exists(tile);
    std::memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < config.rows[tile]; row++)
        std::memcpy(tiles[tile][row], static_cast<const char *>(from) + row * stride, config.column_bytes[tile]);
}

inline void store(int tile, void *into, int64_t stride) {
    exists(tile);
    for (int row = 0; row < config.rows[tile]; row++)
        std::memcpy(static_cast<char *>(into) + row * stride, tiles[tile][row], config.column_bytes[tile]);
}

// Products of pairs: `into` (M x N floats) += `left` (M x 2 K) times `right` (K x 2 N), both of bfloat16.
__attribute__((target("avx512f"))) inline void multiply(int into, int left, int right) {
    exists(into), exists(left), exists(right);
    demand(into != left && into != right && left != right, "a product needs three tiles");
    const int pairs = config.column_bytes[left] / 4;
    demand(config.rows[left] == config.rows[into] && config.column_bytes[right] == config.column_bytes[into] &&
               config.rows[right] == pairs,
           "tiles do not fit each other");
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0);  // to nearest, no exceptions, denormal numbers in and out are zero
    asm volatile("" ::: "memory");  // nothing is computed before that, or after the other one
    const auto columns = static_cast<__mmask16>((1u << config.column_bytes[into] / 4) - 1);
    const __m512i odd = _mm512_set1_epi32(int(0xffff0000u));
    for (int row = 0; row < config.rows[into]; row++) {
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int k = 0; k < pairs; k++) {
            uint32_t both;
            std::memcpy(&both, tiles[left][row] + 4 * k, 4);
            const __m512i one = _mm512_set1_epi32(int(both)), other = _mm512_loadu_si512(tiles[right][k]);
            sums[0] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(one, 16)),
                                      _mm512_castsi512_ps(_mm512_slli_epi32(other, 16)), sums[0]);
            sums[1] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(one, odd)),
                                      _mm512_castsi512_ps(_mm512_and_si512(other, odd)), sums[1]);
        }
        auto *place = reinterpret_cast<float *>(tiles[into][row]);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(columns, place), _mm512_add_ps(sums[0], sums[1]));
        _mm512_mask_storeu_ps(place, columns, sum);
    }
    asm volatile("" ::: "memory");
    _mm_setcsr(before);
}

inline int cpuid(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    if (!__get_cpuid_count(leaf, subleaf, a, b, c, d)) return 0;
    if (leaf == 7 && subleaf == 0) *d |= 1u << 22 | 1u << 24;  // AMX-BF16 and AMX-TILE
    return 1;
}

inline long call(long number, long, long) {
    demand(number == SYS_arch_prctl, "the only call to the system is the one that asks for tiles");
    return 0;
}

}  // namespace stand_in

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig stand_in::load_config
#define _tile_storeconfig stand_in::store_config
#define _tile_release stand_in::release
#define _tile_zero stand_in::zero
#define _tile_loadd stand_in::load
#define _tile_stored stand_in::store
#define _tile_dpbf16ps stand_in::multiply
#define __get_cpuid_count stand_in::cpuid
#define syscall stand_in::call
