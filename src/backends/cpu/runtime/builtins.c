/* The builtin kernels by name. The order is the encoding (fn = -1 - index) and equals `builtins` in native.ts. */
#include "runtime.h"
const Builtin nabla_builtins[] = {
    {"pack_b", k_pack_b},
    {"gemm", k_gemm},
    {"gemm_skinny", k_gemm_skinny},
    {"gemm_small", k_gemm_small},
    {"gemm_f64", k_gemm_f64},
    {"gemm_i32", k_gemm_i32},
    {"attention_fwd", k_attention_fwd},
    {"attention_bwd", k_attention_bwd},
    {"scatter", k_scatter},
    {"argsort", k_argsort},
    {"cumulative", k_cumulative},
    {"fill", k_fill},
    {"copy", k_copy},
    {"transpose", k_transpose},
    {"conv_pack", k_conv_pack},
    {"conv2d_fwd", k_conv2d_fwd},
    {"conv2d_dx", k_conv2d_dx},
    {"conv2d_dw", k_conv2d_dw},
    {"conv2d_dw_finish", k_conv2d_dw_finish},
    {"gemm_quantized", k_gemm_quantized},
    {"gemm_quantized_skinny", k_gemm_quantized_skinny},
    {"dequantize", k_dequantize},
    {"update", k_update},
    {"block_quantize", k_block_quantize},
    {"block_linear", k_block_linear},
    {"stored_quantize", k_stored_quantize},
    {"stored_linear", k_stored_linear},
#if W == 16 && defined(__AVX512BF16__) /* the last: elsewhere no plan names them */
    {"pack_bf16", k_pack_bf16},
    {"gemm_bf16", k_gemm_bf16},
#endif
};
const int nabla_builtin_count = sizeof nabla_builtins / sizeof *nabla_builtins;
