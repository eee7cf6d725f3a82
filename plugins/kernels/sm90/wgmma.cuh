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

// Swizzle of a tile whose rows have 128 or 64 bytes, as descriptors number them.
template <int kRowBytes>
constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2;

// Descriptor of an operand. Rows of kRowBytes lie one after the other, eight of them make a group;
// `column_stride` is what lies between two columns of such rows, where there are several.
template <int kRowBytes>
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t column_stride = 16) {
  static_assert(kRowBytes == 128 || kRowBytes == 64, "rows as wide as a swizzle");
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(column_stride >> 4) << 16 |
         static_cast<uint64_t>(8 * kRowBytes >> 4) << 32 | kSwizzle<kRowBytes> << 62;
}

// Descriptor of the operand `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// d = a b^T (+ d): 64 rows of a, 64 or 128 rows of b, a step of 16 columns, both with contiguous
// columns.
template <typename Element>
__device__ void multiply_keys(float (&d)[32], uint64_t a, uint64_t b, bool accumulate);
template <typename Element>
__device__ void multiply_keys(float (&d)[64], uint64_t a, uint64_t b, bool accumulate);

// d += a b: 64 rows of a, in registers, by 16 rows of b with contiguous columns.
template <typename Element>
__device__ void multiply_values(float (&d)[32], const uint32_t (&a)[4], uint64_t b);
template <typename Element>
__device__ void multiply_values(float (&d)[48], const uint32_t (&a)[4], uint64_t b);
template <typename Element>
__device__ void multiply_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b);

// The instructions of one element type.
#define RAINFUSION_WGMMA(Element, TYPE)                                                            \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_keys<Element>(float (&d)[32], uint64_t a, uint64_t b,   \
                                                         bool accumulate) {                        \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred accumulate;\n"                                                                 \
        "setp.ne.b32 accumulate, %34, 0;\n"                                                        \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                                \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                                               \
        "%10, %11, %12, %13, %14, %15, "                                                           \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, "   \
        "%33, "                                                                                    \
        "accumulate, 1, 1, 0, 0;\n"                                                                \
        "}\n"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),      \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),  \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),            \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),            \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])             \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                      \
  }                                                                                                \
                                                                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_keys<Element>(float (&d)[64], uint64_t a, uint64_t b,   \
                                                         bool accumulate) {                        \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred accumulate;\n"                                                                 \
        "setp.ne.b32 accumulate, %66, 0;\n"                                                        \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                               \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "                                                   \
        "%9, %10, %11, %12, %13, %14, %15, "                                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, "   \
        "%65, "                                                                                    \
        "accumulate, 1, 1, 0, 0;\n"                                                                \
        "}\n"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),      \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),  \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),            \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),            \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),            \
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),            \
          "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),            \
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),            \
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),            \
          "+f"(d[62]), "+f"(d[63])                                                                 \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                      \
  }                                                                                                \
                                                                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_values<Element>(float (&d)[32], const uint32_t (&a)[4], \
                                                           uint64_t b) {                           \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred always;\n"                                                                     \
        "setp.eq.u32 always, 0, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                                \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                                               \
        "%10, %11, %12, %13, %14, %15, "                                                           \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, "  \
        "%33, "                                                                                    \
        "%34, %35}, %36, always, 1, 1, 1;\n"                                                       \
        "}\n"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),      \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),  \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),            \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),            \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                     \
  }                                                                                                \
                                                                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_values<Element>(float (&d)[48], const uint32_t (&a)[4], \
                                                           uint64_t b) {                           \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred always;\n"                                                                     \
        "setp.eq.u32 always, 0, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n96k16.f32." TYPE "." TYPE                                \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                                               \
        "%10, %11, %12, %13, %14, %15, "                                                           \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, {%48, "  \
        "%49, "                                                                                    \
        "%50, %51}, %52, always, 1, 1, 1;\n"                                                       \
        "}\n"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),      \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),  \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),            \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),            \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),            \
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),            \
          "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                     \
  }                                                                                                \
                                                                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void multiply_values<Element>(float (&d)[64], const uint32_t (&a)[4], \
                                                           uint64_t b) {                           \
    asm volatile(                                                                                  \
        "{\n"                                                                                      \
        ".reg .pred always;\n"                                                                     \
        "setp.eq.u32 always, 0, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                               \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "                                                   \
        "%9, %10, %11, %12, %13, %14, %15, "                                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, "  \
        "%65, "                                                                                    \
        "%66, %67}, %68, always, 1, 1, 1;\n"                                                       \
        "}\n"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),      \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),  \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),            \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),            \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),            \
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),            \
          "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),            \
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),            \
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),            \
          "+f"(d[62]), "+f"(d[63])                                                                 \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                     \
  }

RAINFUSION_WGMMA(__half, "f16")
RAINFUSION_WGMMA(__nv_bfloat16, "bf16")

#undef RAINFUSION_WGMMA

}  // namespace rainfusion::sm90
