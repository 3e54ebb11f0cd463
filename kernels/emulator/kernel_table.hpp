// The table of kernels of one .cu file. The build writes a source that includes the .cu file and then this table, so the
// names come from the file itself; each such source becomes one shared object, an emulated "module".
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace emulator {

struct Parameter {
  unsigned bytes;
  bool is_pointer;
};

struct Kernel {
  const char* name;
  void (*invoke)(void** arguments);  // calls the kernel with cuLaunchKernel's array of pointers to arguments
  const Parameter* parameters;
  unsigned parameter_count;
  unsigned max_threads;  // __launch_bounds__
};

struct ModuleTable {
  const Kernel* kernels;
  unsigned kernel_count;
};

template <class> struct Signature;
template <class... Arguments> struct Signature<void (*)(Arguments...)> {
  static_assert((std::is_trivially_copyable_v<Arguments> && ...), "a kernel's parameters are copied byte by byte");
  static constexpr unsigned count = sizeof...(Arguments);
  static constexpr Parameter parameters[count + 1] = {{sizeof(Arguments), std::is_pointer_v<Arguments>}..., {0, false}};

  template <auto kernel, size_t... index> static void call(void** arguments, std::index_sequence<index...>) {
    kernel(*static_cast<Arguments*>(arguments[index])...);
  }
  template <auto kernel> static void invoke(void** arguments) {
    call<kernel>(arguments, std::index_sequence_for<Arguments...>{});
  }
};

template <auto kernel> constexpr Kernel describe(const char* name, unsigned max_threads) {
  using Described = Signature<decltype(kernel)>;
  return {name, &Described::template invoke<kernel>, Described::parameters, Described::count, max_threads};
}

}  // namespace emulator

// EMULATED_MODULE(EMULATED_KERNEL(a), EMULATED_KERNEL(b)) at the end of the file.
#define EMULATED_KERNEL(name) emulator::describe<&name>(#name, emulated_max_threads_of_##name)
#define EMULATED_MODULE(...)                                      \
  static const emulator::Kernel emulated_kernels[] = {__VA_ARGS__}; \
  extern "C" __attribute__((visibility("default"))) const emulator::ModuleTable emulated_module; \
  const emulator::ModuleTable emulated_module = {emulated_kernels, sizeof emulated_kernels / sizeof *emulated_kernels};
