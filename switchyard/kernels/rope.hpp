#pragma once
// What stands between the QKV projection and attention in Qwen3: RMSNorm of each query and key head, then the rotary
// embedding (arXiv 2104.09864, equation 34, in the half-split form of Hugging Face). B rows, S positions, J key and value
// heads, I query heads for each of them (H = J * I), W head width.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard {

struct HeadShape {
  int64_t batch = 0;       // B
  int64_t positions = 0;   // S
  int64_t kv_heads = 0;    // J
  int64_t group = 0;       // I
  int64_t head_width = 0;  // W, even
  [[nodiscard]] int64_t query_width() const { return kv_heads * group * head_width; }
  [[nodiscard]] int64_t kv_width() const { return kv_heads * head_width; }
  [[nodiscard]] int64_t qkv_width() const { return query_width() + 2 * kv_width(); }
};

/// cos and sin of position * theta^(-2i / W), [S, W / 2].
struct RopeTable {
  at::Tensor cos_SP;
  at::Tensor sin_SP;
};

/// @param type  kFloat or kDouble; angles are computed in double in either case
[[nodiscard]] RopeTable make_rope_table(int64_t positions, int64_t head_width, double theta, at::ScalarType type);

/// Heads as causal_attention() reads them. Contiguous; the query heads of one key head lie beside each other.
struct AttentionHeads {
  at::Tensor query_BJSIW;
  at::Tensor key_BJSW;
  at::Tensor value_BJSW;
};

/// @param qkv_TC         [B * S, (H + 2 J) * W]: query heads (head j * I + i), key heads, value heads
/// @param query_scale    the query is multiplied by it after the rotation (1 / sqrt(W)), while it is still fp32
/// @param query_weight_W, key_weight_W  RMSNorm weights, fp32 (double for double)
[[nodiscard]] AttentionHeads split_norm_rotate(const at::Tensor& qkv_TC, const at::Tensor& query_weight_W,
                                               const at::Tensor& key_weight_W, const RopeTable& table,
                                               const HeadShape& shape, double epsilon, double query_scale);
[[nodiscard]] AttentionHeads split_norm_rotate_reference(const at::Tensor& qkv_TC, const at::Tensor& query_weight_W,
                                                         const at::Tensor& key_weight_W, const RopeTable& table,
                                                         const HeadShape& shape, double epsilon, double query_scale);

}  // namespace switchyard
