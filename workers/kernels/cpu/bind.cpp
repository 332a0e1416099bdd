// The operators as torch sees them, with their shapes checked.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>

#include "ops.h"

void parallel(long size, long grain, const std::function<void(long, long)>& f) {
  at::parallel_for(0, size, grain, f);
}

void share(long size, const std::function<void(long)>& f) {
  std::atomic<long> next{0};
  at::parallel_for(0, std::min<long>(size, at::get_num_threads()), 1, [&](long, long) {
    for (long i = next++; i < size; i = next++) f(i);
  });
}

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}
template <class T>
T* data(const Maybe& x) {
  return x ? data<T>(*x) : nullptr;
}

// f with a null pointer of the element type.
template <class F>
void with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kFloat) return f(static_cast<float*>(nullptr));
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "float32 or bfloat16, not ", x.scalar_type());
  f(static_cast<bf16*>(nullptr));
}
#define TYPE(null) std::remove_pointer_t<decltype(null)>

void check(bool good, const char* what) { TORCH_CHECK(good, "kvasir: ", what); }

void pack_op(const Tensor& weight, Tensor& packed) {
  check(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kBFloat16,
        "weight must be bfloat16 [outputs, inputs]");
  long outputs = weight.size(0), inputs = weight.size(1);
  check(packed.is_contiguous() && packed.scalar_type() == at::kBFloat16 &&
            packed.numel() == panels_of(outputs) * inputs * kPair,
        "packed must be bfloat16 [panels, inputs, columns]");
  pack_weight(data<bf16>(weight), outputs, inputs, data<bf16>(packed));
}

Tensor linear_op(const Tensor& x, const Tensor& packed, const Maybe& bias, int64_t outputs) {
  long inputs = packed.size(1);
  check(packed.size(0) == panels_of(outputs) && packed.size(2) == kPair, "packed elsewhere");
  check(x.dim() == 2 && x.size(1) == inputs && x.stride(1) == 1 &&
            x.scalar_type() == at::kBFloat16,
        "x must be bfloat16 [T, inputs]");
  check(!bias || (bias->scalar_type() == at::kBFloat16 &&
                  bias->numel() == panels_of(outputs) * kPair),
        "bias must be bfloat16, padded to whole panels");
  Tensor out = at::empty({x.size(0), outputs}, x.options());
  linear(data<bf16>(x), x.stride(0), x.size(0), inputs, data<bf16>(packed), data<bf16>(bias), outputs,
         data<bf16>(out));
  return out;
}

Tensor add_rms_norm_op(const Maybe& x, Tensor& residual, const Tensor& weight, double eps) {
  long rows = residual.size(0), width = residual.size(1);
  check(residual.is_contiguous() && weight.numel() == width &&
            weight.scalar_type() == at::kFloat,
        "residual must be [T, W], weight float32 [W]");
  check(!x || (x->is_contiguous() && x->sizes() == residual.sizes() &&
               x->scalar_type() == residual.scalar_type()),
        "x must be like residual");
  Tensor out = at::empty_like(residual);
  with_type(residual, [&](auto null) {
    using T = TYPE(null);
    add_rms_norm(data<T>(x), data<T>(residual), data<float>(weight), float(eps), rows, width,
                 data<T>(out));
  });
  return out;
}

void rotate_op(Tensor& heads, const Tensor& cos, const Tensor& sin, const Maybe& weight, double eps) {
  long rows = heads.size(0), count = heads.size(1), dim = heads.size(2);
  check(heads.stride(2) == 1 && heads.stride(1) == dim && dim % 2 == 0,
        "heads must be [T, H, D], only T strided");
  check(cos.is_contiguous() && sin.is_contiguous() && cos.scalar_type() == at::kFloat &&
            cos.numel() == rows * dim / 2 && sin.numel() == cos.numel(),
        "cos and sin must be float32 [T, D / 2]");
  check(!weight || (weight->is_contiguous() && weight->numel() == count * dim &&
                    weight->scalar_type() == at::kFloat),
        "weight must be float32 [H, D]");
  with_type(heads, [&](auto null) {
    using T = TYPE(null);
    rotate(data<T>(heads), heads.stride(0), data<float>(cos), data<float>(sin),
           data<float>(weight), float(eps), rows, count, dim);
  });
}

Tensor silu_mul_op(const Tensor& gate_up) {
  check(gate_up.dim() == 2 && gate_up.is_contiguous(), "gate_up must be [T, 2 I]");
  Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  with_type(gate_up, [&](auto null) {
    using T = TYPE(null);
    silu_mul(data<T>(gate_up), out.size(0), out.size(1), data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> argmax_op(const Tensor& x) {
  check(x.dim() == 2 && x.size(1) > 0 && x.stride(1) == 1, "x must be [n, width], only n strided");
  Tensor values = at::empty({x.size(0)}, x.options());
  Tensor indices = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  with_type(x, [&](auto null) {
    using T = TYPE(null);
    argmax(data<T>(x), x.stride(0), x.size(0), x.size(1), data<T>(values), data<int64_t>(indices));
  });
  return {values, indices};
}

bool by_heads(const Tensor& x, long heads, long dim) {
  return x.dim() == 3 && x.size(1) == heads && x.size(2) == dim && x.stride(2) == 1 &&
         x.stride(1) == dim;
}

// pages: [blocks, layers, sides, block_size, kv_heads, head_dim]
Step step_of(const Tensor& pages) {
  check(pages.dim() == 6 && pages.is_contiguous() && pages.size(2) <= 2, "pages by blocks");
  Step step{};
  step.block_size = pages.size(3), step.kv_heads = pages.size(4), step.head_dim = pages.size(5);
  step.block_stride = pages.stride(0);
  step.side_stride = pages.size(2) == 2 ? pages.stride(2) : 0;
  return step;
}

void write_op(const Tensor& key, const Maybe& value, Tensor& pages, int64_t layer,
              const Tensor& slots) {
  Step step = step_of(pages);
  check(value.has_value() == (pages.size(2) == 2), "a value where pages have a side for it");
  for (const Tensor* side : {&key, value ? &*value : &key})
    check(by_heads(*side, step.kv_heads, step.head_dim) && side->size(0) == slots.numel() &&
              side->scalar_type() == pages.scalar_type(),
          "key and value must be [T, kv_heads, head_dim]");
  check(slots.scalar_type() == at::kLong && slots.is_contiguous(), "slots must be int64 [T]");
  step.tokens = key.size(0), step.slots = data<int64_t>(slots);
  step.key_stride = key.stride(0), step.value_stride = value ? value->stride(0) : 0;
  with_type(pages, [&](auto null) {
    using T = TYPE(null);
    write_pages(step, data<T>(key), data<T>(value), data<T>(pages) + layer * pages.stride(1));
  });
}

// Of the first sequences of a step: as many as `lengths` has.
Tensor attend_op(const Tensor& query, const Tensor& pages, int64_t layer, const Tensor& tables,
                 const Tensor& starts, const Tensor& lengths, double scale,
                 std::optional<int64_t> window, const Maybe& sinks,
                 std::optional<int64_t> value_dim) {
  Step step = step_of(pages);
  long heads = query.size(1), dim = step.head_dim;
  long value_width = value_dim.value_or(dim);
  step.value_dim = (value_width + kPair - 1) / kPair * kPair;
  check(value_dim.has_value() == !step.side_stride && value_width <= dim,
        "value_dim is for pages of one side");
  check(dim % kPair == 0, "head_dim must be whole vectors");
  check(!window || *window > 0, "a window holds the query's own key at least");
  check(!sinks || sinks->numel() == heads, "sinks must be [heads]");
  Tensor logits = sinks ? sinks->to(at::kFloat).contiguous() : Tensor();
  step.scale = float(scale), step.window = window.value_or(INT32_MAX);
  step.sinks = sinks ? data<float>(logits) : nullptr;
  check(heads % step.kv_heads == 0 && by_heads(query, heads, dim) &&
            query.scalar_type() == pages.scalar_type(),
        "query must be [T, heads, head_dim]");
  for (const Tensor* each : {&tables, &starts, &lengths})
    check(each->scalar_type() == at::kInt && each->is_contiguous(), "int32, contiguous");
  check(starts.numel() == lengths.numel() + 1 && tables.size(0) == lengths.numel(),
        "block_tables, starts and lengths must be of the same sequences");
  step.tokens = query.size(0), step.sequences = lengths.numel(), step.heads = heads;
  step.query_stride = query.stride(0), step.table_width = tables.size(1);
  step.tables = data<int32_t>(tables), step.starts = data<int32_t>(starts);
  step.lengths = data<int32_t>(lengths);
  check(step.starts[step.sequences] == step.tokens, "starts must end at T");
  Tensor out = at::empty({step.tokens, heads, step.value_dim}, query.options());
  with_type(pages, [&](auto null) {
    using T = TYPE(null);
    attend<T>(step, data<T>(query), data<T>(pages) + layer * pages.stride(1), data<T>(out));
  });
  return value_width == step.value_dim ? out : out.narrow(2, 0, value_width);
}

}  // namespace

TORCH_LIBRARY(kvasir, m) {
  m.def("pack(Tensor weight, Tensor(a!) packed) -> ()", &pack_op);
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor", &linear_op);
  m.def("add_rms_norm(Tensor? x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
        &add_rms_norm_op);
  m.def("rotate(Tensor(a!) heads, Tensor cos, Tensor sin, Tensor? weight, float eps) -> ()",
        &rotate_op);
  m.def("argmax(Tensor x) -> (Tensor values, Tensor indices)", &argmax_op);
  m.def("silu_mul(Tensor gate_up) -> Tensor", &silu_mul_op);
  m.def("write_pages(Tensor key, Tensor? value, Tensor(a!) pages, int layer, Tensor slots) -> ()",
        &write_op);
  m.def(
      "attend(Tensor query, Tensor pages, int layer, Tensor tables, Tensor starts, "
      "Tensor lengths, float scale, int? window, Tensor? sinks, int? value_dim) -> Tensor",
      &attend_op);
}
