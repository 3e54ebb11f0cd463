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
struct Messages {
  std::mutex mutex;
  std::set<std::string> all;
  std::map<int, const char*> latest;
};

Messages& messages() {
  static auto* instance = new Messages;
  return *instance;
}

}  // namespace

CUresult report(CUresult code, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "cuda emulator: %s\n", text);
  Messages& known = messages();
  std::lock_guard<std::mutex> lock(known.mutex);
  known.latest[code] = known.all.insert(text).first->c_str();
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
  auto& known = emulator::messages();
  std::lock_guard<std::mutex> lock(known.mutex);
  auto latest = known.latest.find(code);
  if (latest != known.latest.end()) {
    *text = latest->second;
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
