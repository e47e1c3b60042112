// What this library is, and what of it can run here.

#include "processor.hpp"

extern "C" {

const char *sources();  // SHA-256 of the sources that this was built from
int networks_level();   // 0: nothing here applies; 1: AVX2 with FMA; 2: AVX512; 3: AMX
}

const char *sources() { return SOURCES; }

#ifdef SFUMATO_KERNELS

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

bool cpu_has_tiles() {  // of bfloat16, and AVX512-BF16
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}

}  // namespace

int networks_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512bw"))
        return 1;
    if (!cpu_has_tiles()) return 2;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;  // the kernel grants tiles on request
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 ? 3 : 2;
}

#else

int networks_level() { return 0; }

#endif
