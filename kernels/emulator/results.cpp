// Error reports, and the driver API's two functions that put a result code into words.
#include "results.hpp"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace emulator {
namespace {

// cuGetErrorString hands out pointers that stay valid for ever, so a message is never freed (the set shares equal ones).
const char* keep(const char* text) {
  static std::mutex mutex;
  static auto* kept = new std::set<std::string>;
  std::lock_guard<std::mutex> lock(mutex);
  return kept->insert(text).first->c_str();
}

// The latest report of each code on this thread, which is the one that made the call and will ask.
thread_local std::map<int, const char*> latest;

}  // namespace

CUresult report(CUresult code, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "cuda emulator: %s\n", text);
  latest[code] = keep(text);
  return code;
}

}  // namespace emulator

extern "C" CUresult cuGetErrorName(CUresult code, const char** name) {
  switch (code) {
#define EMULATED_RESULT_NAME(value, identifier, meaning) \
  case identifier: *name = #identifier; return CUDA_SUCCESS;
    EMULATED_RESULTS(EMULATED_RESULT_NAME)
#undef EMULATED_RESULT_NAME
  }
  *name = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

// The latest report of this code, which says more than CUDA's fixed strings: kernel, block, thread and address.
extern "C" CUresult cuGetErrorString(CUresult code, const char** text) {
  auto found = emulator::latest.find(code);
  if (found != emulator::latest.end()) {
    *text = found->second;
    return CUDA_SUCCESS;
  }
  switch (code) {
#define EMULATED_RESULT_MEANING(value, identifier, meaning) \
  case identifier: *text = meaning; return CUDA_SUCCESS;
    EMULATED_RESULTS(EMULATED_RESULT_MEANING)
#undef EMULATED_RESULT_MEANING
  }
  *text = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}
