// The loops of LOOPS for each kind of processor, and which of them to use.

namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#include "vectors.hpp"
#include LOOPS
#undef TARGET
#undef LANES
}  // namespace avx2

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))
#define LANES 16
#include "vectors.hpp"
#include LOOPS
#undef TARGET
#undef LANES
}  // namespace avx512

// The level's own version of a function, for numbers of the given kind.
#define AT(level, half, function)                                       \
    (level >= 2 ? half ? avx512::function<true> : avx512::function<false> \
                : half ? avx2::function<true> : avx2::function<false>)

const void *moved(const void *from, int64_t count, int half) {
    return static_cast<const char *>(from) + count * (half ? 2 : 4);
}

void *moved(void *from, int64_t count, int half) { return static_cast<char *>(from) + count * (half ? 2 : 4); }
