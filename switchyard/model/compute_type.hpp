#pragma once
// Which type a processor computes in faster.

#include "switchyard/model/config.hpp"

namespace switchyard {

struct ProcessorTraits {
  bool has_amx_bf16 = false, has_avx512_bf16 = false;  // which products may use
  bool is_intel = false;
};

/// BFloat16 with AMX, or with AVX512-BF16 unless the processor is Intel's, which without AMX multiplies bf16 at about half the
/// rate of fp32 (docs/performance.md, "Without AMX"); else Float32.
[[nodiscard]] ComputeType faster_compute_type(const ProcessorTraits& processor);

/// Auto becomes the faster type of this processor.
[[nodiscard]] ComputeType resolve_compute_type(ComputeType asked);

}  // namespace switchyard
