// Warpgroup matrix products of Hopper's tensor cores (wgmma), and how their operands lie in shared
// memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rainfusion::sm90 {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to accumulators past this point while a product runs.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin_registers(int32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Swizzle of a tile whose rows have 128, 64 or 32 bytes, as descriptors number them.
template <int kRowBytes>
constexpr uint64_t kSwizzle = kRowBytes == 128  ? 1
                              : kRowBytes == 64 ? 2
                                                : 3;

// Descriptor of an operand. Rows of kRowBytes lie one after the other, eight of them make a group;
// `column_stride` is what lies between two columns of such rows, where there are several.
template <int kRowBytes>
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t column_stride = 16) {
  static_assert(kRowBytes == 128 || kRowBytes == 64 || kRowBytes == 32,
                "rows as wide as a swizzle");
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(column_stride >> 4) << 16 |
         static_cast<uint64_t>(8 * kRowBytes >> 4) << 32 | kSwizzle<kRowBytes> << 62;
}

// Descriptor of the operand `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// d = a b^T (+ d): 64 rows of a, as many rows of b as d has columns (a thread holds half as many
// sums), a step of 16 columns, both with contiguous columns.
template <typename Element, int kSums>
__device__ void multiply_keys(float (&d)[kSums], uint64_t a, uint64_t b, bool accumulate);

// d += a b: 64 rows of a, in registers, by 16 rows of b with contiguous columns.
template <typename Element, int kSums>
__device__ void multiply_values(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b);

// a b as above for operands of 8 bits, of a step of 32 bytes: scores of integers; and values in
// e4m3 whose keys are contiguous, their channels rows.
template <int kSums>
__device__ void multiply_integer_keys(int32_t (&d)[kSums], uint64_t a, uint64_t b);
template <int kSums>
__device__ void multiply_e4m3_values(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b);

// Accumulators as operands of a constraint, from the i-th on, and their names in the instruction's
// text.
#define RAINFUSION_SUMS_8(constraint, i)                                              \
  constraint(d[i]), constraint(d[i + 1]), constraint(d[i + 2]), constraint(d[i + 3]), \
      constraint(d[i + 4]), constraint(d[i + 5]), constraint(d[i + 6]), constraint(d[i + 7])
#define RAINFUSION_SUMS_16(constraint, i) \
  RAINFUSION_SUMS_8(constraint, i), RAINFUSION_SUMS_8(constraint, i + 8)
#define RAINFUSION_SUMS_32(constraint) \
  RAINFUSION_SUMS_16(constraint, 0), RAINFUSION_SUMS_16(constraint, 16)
#define RAINFUSION_SUMS_40(constraint) \
  RAINFUSION_SUMS_32(constraint), RAINFUSION_SUMS_8(constraint, 32)
#define RAINFUSION_SUMS_48(constraint) \
  RAINFUSION_SUMS_32(constraint), RAINFUSION_SUMS_16(constraint, 32)
#define RAINFUSION_SUMS_64(constraint) \
  RAINFUSION_SUMS_48(constraint), RAINFUSION_SUMS_16(constraint, 48)
#define RAINFUSION_NAMES_32                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RAINFUSION_NAMES_40 RAINFUSION_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define RAINFUSION_NAMES_48 RAINFUSION_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define RAINFUSION_NAMES_64 \
  RAINFUSION_NAMES_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// N is the number of columns of d; a, b and so on are the names of the operands behind the sums.
#define RAINFUSION_MULTIPLY_KEYS(Element, TYPE, SUMS, N, a_name, b_name, flag)                     \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_keys<Element>(float (&d)[SUMS], uint64_t a, uint64_t b, \
                                                         bool accumulate) {                        \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred accumulate;\n"                                                                 \
        "setp.ne.b32 accumulate, " flag                                                            \
        ", 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64" N "k16.f32." TYPE "." TYPE " {" RAINFUSION_NAMES_##SUMS \
        "}, " a_name ", " b_name                                                                   \
        ", accumulate, 1, 1, 0, 0;\n"                                                              \
        "}\n"                                                                                      \
        : RAINFUSION_SUMS_##SUMS("+f")                                                             \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                      \
  }
#define RAINFUSION_MULTIPLY_VALUES(Element, TYPE, SUMS, N, a_names, b_name)                        \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_values<Element>(float (&d)[SUMS],                       \
                                                           const uint32_t (&a)[4], uint64_t b) {   \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred always;\n"                                                                     \
        "setp.eq.u32 always, 0, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64" N "k16.f32." TYPE "." TYPE " {" RAINFUSION_NAMES_##SUMS \
        "}, {" a_names "}, " b_name                                                                \
        ", always, 1, 1, 1;\n"                                                                     \
        "}\n"                                                                                      \
        : RAINFUSION_SUMS_##SUMS("+f")                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                     \
  }

// Keys of tile_shape(), and head sizes.
#define RAINFUSION_WGMMA(Element, TYPE)                                             \
  RAINFUSION_MULTIPLY_KEYS(Element, TYPE, 64, "n128", "%64", "%65", "%66")          \
  RAINFUSION_MULTIPLY_KEYS(Element, TYPE, 48, "n96", "%48", "%49", "%50")           \
  RAINFUSION_MULTIPLY_KEYS(Element, TYPE, 40, "n80", "%40", "%41", "%42")           \
  RAINFUSION_MULTIPLY_VALUES(Element, TYPE, 32, "n64", "%32, %33, %34, %35", "%36") \
  RAINFUSION_MULTIPLY_VALUES(Element, TYPE, 48, "n96", "%48, %49, %50, %51", "%52") \
  RAINFUSION_MULTIPLY_VALUES(Element, TYPE, 64, "n128", "%64, %65, %66, %67", "%68")

RAINFUSION_WGMMA(__half, "f16")
RAINFUSION_WGMMA(__nv_bfloat16, "bf16")

#define RAINFUSION_MULTIPLY_INTEGER_KEYS(SUMS, N, a_name, b_name)                       \
  template <>                                                                           \
  __device__ __forceinline__ void multiply_integer_keys(int32_t (&d)[SUMS], uint64_t a, \
                                                        uint64_t b) {                   \
    asm volatile(                                                                       \
        "{\n"                                                                           \
        ".reg .pred always;\n"                                                          \
        "setp.eq.u32 always, 0, 0;\n"                                                   \
        "wgmma.mma_async.sync.aligned.m64" N "k32.s32.s8.s8 {" RAINFUSION_NAMES_##SUMS  \
        "}, " a_name ", " b_name                                                        \
        ", always;\n"                                                                   \
        "}\n"                                                                           \
        : RAINFUSION_SUMS_##SUMS("+r")                                                  \
        : "l"(a), "l"(b));                                                              \
  }
#define RAINFUSION_MULTIPLY_E4M3_VALUES(SUMS, N, a_names, b_name)                                \
  template <>                                                                                    \
  __device__ __forceinline__ void multiply_e4m3_values(float (&d)[SUMS], const uint32_t (&a)[4], \
                                                       uint64_t b) {                             \
    asm volatile(                                                                                \
        "{\n"                                                                                    \
        ".reg .pred always;\n"                                                                   \
        "setp.eq.u32 always, 0, 0;\n"                                                            \
        "wgmma.mma_async.sync.aligned.m64" N "k32.f32.e4m3.e4m3 {" RAINFUSION_NAMES_##SUMS       \
        "}, {" a_names "}, " b_name                                                              \
        ", always, 1, 1;\n"                                                                      \
        "}\n"                                                                                    \
        : RAINFUSION_SUMS_##SUMS("+f")                                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                   \
  }

// Keys of eight_bit::keys_of(), and its head sizes.
RAINFUSION_MULTIPLY_INTEGER_KEYS(64, "n128", "%64", "%65")
RAINFUSION_MULTIPLY_INTEGER_KEYS(48, "n96", "%48", "%49")
RAINFUSION_MULTIPLY_E4M3_VALUES(32, "n64", "%32, %33, %34, %35", "%36")
RAINFUSION_MULTIPLY_E4M3_VALUES(64, "n128", "%64, %65, %66, %67", "%68")

#undef RAINFUSION_MULTIPLY_E4M3_VALUES
#undef RAINFUSION_MULTIPLY_INTEGER_KEYS
#undef RAINFUSION_WGMMA
#undef RAINFUSION_MULTIPLY_VALUES
#undef RAINFUSION_MULTIPLY_KEYS
#undef RAINFUSION_NAMES_64
#undef RAINFUSION_NAMES_48
#undef RAINFUSION_NAMES_40
#undef RAINFUSION_NAMES_32
#undef RAINFUSION_SUMS_64
#undef RAINFUSION_SUMS_48
#undef RAINFUSION_SUMS_40
#undef RAINFUSION_SUMS_32
#undef RAINFUSION_SUMS_16
#undef RAINFUSION_SUMS_8

}  // namespace rainfusion::sm90
