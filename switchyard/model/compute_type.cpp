#include "switchyard/model/compute_type.hpp"

#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>

#include <string>
#include <unordered_map>

#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {
namespace {

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

ProcessorTraits this_processor() {
  const std::unordered_map<std::string, c10::IValue> features = at::cpu::get_cpu_capabilities();
  const auto has = [&](const std::string& name) {
    const auto found = features.find(name);  // absent on other architectures
    return found != features.end() && found->second.toBool();
  };
  // What the processor has is of no use where PyTorch was built without it or ONEDNN_MAX_CPU_ISA forbids it: a product tells.
  const bool products = has_tile_products(at::kBFloat16);
  return {products && has("amx_bf16"), products && has("avx512_bf16"), is_intel()};
}

}  // namespace

ComputeType faster_compute_type(const ProcessorTraits& processor) {
  const bool bf16 = processor.has_amx_bf16 || (processor.has_avx512_bf16 && !processor.is_intel);
  return bf16 ? ComputeType::BFloat16 : ComputeType::Float32;
}

ComputeType resolve_compute_type(ComputeType asked) {
  return asked == ComputeType::Auto ? faster_compute_type(this_processor()) : asked;
}

}  // namespace switchyard
