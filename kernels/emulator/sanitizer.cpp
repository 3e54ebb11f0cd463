// The modules are compiled with -fsanitize=alignment,integer-divide-by-zero, and with bounds where that was asked for;
// the compiler then calls these functions where a check fails. They stand in for the compiler's own runtime library, which knows nothing of blocks and
// threads. The data they are given is part of the ABI that GCC and Clang share.
#include <cstdint>

#include "threads.hpp"

namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

struct TypeDescriptor {
  uint16_t kind, information;
  char name[1];  // as long as it takes
};

struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment, check_kind;
};

struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor *array_type, *index_type;
};

[[noreturn]] void fail_type_mismatch(const TypeMismatch* data, uintptr_t pointer) {
  emulator::fail(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned access of type %s at %s:%u: 0x%zx is no multiple of %u bytes",
                 data->type->name, data->location.file, data->location.line, pointer, 1u << data->log_alignment);
}

[[noreturn]] void fail_out_of_bounds(const OutOfBounds* data, uintptr_t index) {
  emulator::fail(CUDA_ERROR_ILLEGAL_ADDRESS, "index %zd is out of bounds of %s at %s:%u", static_cast<intptr_t>(index),
                 data->array_type->name, data->location.file, data->location.line);
}

[[noreturn]] void fail_division(const SourceLocation* location) {
  emulator::fail(CUDA_ERROR_LAUNCH_FAILED, "integer division by zero, or overflow of a division, at %s:%u",
                 location->file, location->line);
}

}  // namespace

// The compiler calls one name of each pair, by whether it was told to go on after a finding; here none goes on.
extern "C" {
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) { fail_type_mismatch(data, pointer); }
void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t pointer) { fail_type_mismatch(data, pointer); }
void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) { fail_out_of_bounds(data, index); }
void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) { fail_out_of_bounds(data, index); }
void __ubsan_handle_divrem_overflow(SourceLocation* data, uintptr_t, uintptr_t) { fail_division(data); }
void __ubsan_handle_divrem_overflow_abort(SourceLocation* data, uintptr_t, uintptr_t) { fail_division(data); }
}
