// CUresult: the driver API's result codes that the emulator gives, and how it reports an error.
#pragma once

// code, name, what it means when nothing more exact was reported
#define EMULATED_RESULTS(result)                                                        \
  result(0, CUDA_SUCCESS, "no error")                                                   \
  result(1, CUDA_ERROR_INVALID_VALUE, "invalid argument")                               \
  result(2, CUDA_ERROR_OUT_OF_MEMORY, "out of memory")                                  \
  result(3, CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called")                        \
  result(101, CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")                      \
  result(201, CUDA_ERROR_INVALID_CONTEXT, "no context is current to this host thread")  \
  result(301, CUDA_ERROR_FILE_NOT_FOUND, "file not found")                              \
  result(302, CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, "not a module of emulated kernels") \
  result(400, CUDA_ERROR_INVALID_HANDLE, "invalid handle")                              \
  result(500, CUDA_ERROR_NOT_FOUND, "named symbol not found")                           \
  result(600, CUDA_ERROR_NOT_READY, "not ready")                                        \
  result(700, CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")   \
  result(701, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch") \
  result(702, CUDA_ERROR_LAUNCH_TIMEOUT, "the kernel's threads wait for one another for ever") \
  result(710, CUDA_ERROR_ASSERT, "device-side assert triggered")                        \
  result(714, CUDA_ERROR_HARDWARE_STACK_ERROR, "stack overflow in a kernel")            \
  result(715, CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered") \
  result(716, CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address")                      \
  result(719, CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure")                   \
  result(801, CUDA_ERROR_NOT_SUPPORTED, "not emulated")                                 \
  result(900, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing") \
  result(901, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error invalidated the stream capture") \
  result(902, CUDA_ERROR_STREAM_CAPTURE_MERGE, "the wait would merge two captures")     \
  result(903, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was not begun on this stream") \
  result(904, CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a stream forked into the capture was not joined again") \
  result(905, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a capturing stream waits on an event recorded outside the capture") \
  result(907, CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture")         \
  result(999, CUDA_ERROR_UNKNOWN, "unknown error")

enum CUresult {
#define EMULATED_RESULT_ENUMERATOR(code, name, meaning) name = code,
  EMULATED_RESULTS(EMULATED_RESULT_ENUMERATOR)
#undef EMULATED_RESULT_ENUMERATOR
};

namespace emulator {

// Prints "cuda emulator: <message>" as one line on stderr, keeps the message for cuGetErrorString, returns `code`.
CUresult report(CUresult code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulator
