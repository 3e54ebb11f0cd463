// The emulated driver API: modules, functions and launches.
//
// A module is a shared object made of one .cu file. cuModuleLoad opens the one it is given; cuModuleLoadData, whose
// image is made for a GPU, does not look at it and gives a module of all kernels in the folder `modules` beside this
// library, which the build fills from kernels/*.cu.
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "driver.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace emulator {
namespace {

struct Module {
  std::map<std::string, Function> functions;
};

Handles<CUmodule, Module>& modules() {
  static auto* instance = new Handles<CUmodule, Module>;
  return *instance;
}

Handles<CUfunction, Function>& functions() {
  static auto* instance = new Handles<CUfunction, Function>;
  return *instance;
}

// The thread-local storage of a shared object, which is its static __shared__ arrays and nothing else.
StaticShared static_shared_of(void* object) {
  StaticShared found;
  if (dlinfo(object, RTLD_DI_TLS_MODID, &found.tls_module) != 0 || found.tls_module == 0) return {};
  dl_iterate_phdr(
      [](dl_phdr_info* information, size_t, void* data) {
        auto* found = static_cast<StaticShared*>(data);
        if (information->dlpi_tls_modid != found->tls_module) return 0;
        for (int index = 0; index < information->dlpi_phnum; ++index)
          if (information->dlpi_phdr[index].p_type == PT_TLS) found->bytes = information->dlpi_phdr[index].p_memsz;
        return 1;
      },
      &found);
  return found;
}

// Adds the kernels of a shared object. It stays open: launches in graphs may outlive the module.
CUresult add_kernels(Module& module, const std::string& path) {
  void* object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) return report(CUDA_ERROR_FILE_NOT_FOUND, "%s", dlerror());
  auto* table = static_cast<const ModuleTable*>(dlsym(object, "emulated_module"));
  if (table == nullptr)
    return report(CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, "%s: not a module of emulated kernels", path.c_str());
  StaticShared shared = static_shared_of(object);
  for (unsigned index = 0; index < table->kernel_count; ++index)
    module.functions[table->kernels[index].name] = {&table->kernels[index], shared, default_shared_per_block};
  return CUDA_SUCCESS;
}

std::string modules_folder() {
  Dl_info information;
  dladdr(reinterpret_cast<void*>(&modules_folder), &information);
  std::string library = information.dli_fname;
  return library.substr(0, library.find_last_of('/') + 1) + "modules";
}

std::vector<std::string> module_paths() {
  std::vector<std::string> paths;
  std::string folder = modules_folder();
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return paths;
  while (dirent* entry = readdir(entries)) {
    std::string name = entry->d_name;
    if (name.size() > 3 && name.compare(name.size() - 3, 3, ".so") == 0) paths.push_back(folder + "/" + name);
  }
  closedir(entries);
  std::sort(paths.begin(), paths.end());
  return paths;
}

struct LaunchShape {
  dim3 grid, block;
  unsigned dynamic_shared;
};

CUresult check_shape(const Function& function, const LaunchShape& shape) {
  const char* name = function.kernel->name;
  dim3 grid = shape.grid, block = shape.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
    return report(CUDA_ERROR_INVALID_VALUE, "launch of %s: a grid of (%u,%u,%u) blocks, must be 1 to (2^31-1,65535,65535)",
                  name, grid.x, grid.y, grid.z);
  uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > max_threads_per_block)
    return report(CUDA_ERROR_INVALID_VALUE, "launch of %s: a block of (%u,%u,%u) threads, must be 1 to (1024,1024,64) and "
                  "1024 in all", name, block.x, block.y, block.z);
  if (threads > function.kernel->max_threads)
    return report(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "launch of %s: %zu threads a block, its launch bounds allow %u", name,
                  static_cast<size_t>(threads), function.kernel->max_threads);
  if (shape.dynamic_shared > function.max_dynamic_shared)
    return report(CUDA_ERROR_INVALID_VALUE,
                  "launch of %s: %u bytes of dynamic shared memory, %u are allowed (cuFuncSetAttribute allows more)", name,
                  shape.dynamic_shared, function.max_dynamic_shared);
  return CUDA_SUCCESS;
}

// The driver is given no count and no types, just addresses; what can be told is whether a pointer parameter points
// into device memory. (The Rust side knows each kernel's parameters from the generated kernels.rs.)
CUresult check_arguments(const Kernel& kernel, void* const* arguments) {
  for (unsigned index = 0; index < kernel.parameter_count; ++index) {
    if (arguments[index] == nullptr)
      return report(CUDA_ERROR_INVALID_VALUE, "launch of %s: argument %u of %u is missing", kernel.name, index,
                    kernel.parameter_count);
    if (!kernel.parameters[index].is_pointer) continue;
    uintptr_t pointer;
    memcpy(&pointer, arguments[index], sizeof pointer);
    if (pointer != 0 && !is_allocated(pointer, 0))
      return report(CUDA_ERROR_ILLEGAL_ADDRESS, "launch of %s: argument %u is a pointer, but 0x%zx is no device memory: %s",
                    kernel.name, index, pointer, describe_address(pointer).c_str());
  }
  return CUDA_SUCCESS;
}

CUresult launch_now(const Function& function, const LaunchShape& shape, void** arguments) {
  if (CUresult error = check_arguments(*function.kernel, arguments)) return error;
  Launch launch{function.kernel, shape.grid, shape.block, shape.dynamic_shared, arguments, function.static_shared,
                launch_order()};
  CUresult result = run(launch);
  CUresult guards = check_guards((std::string("kernel ") + function.kernel->name).c_str());
  return result ? result : guards;
}

// A captured launch keeps copies of its arguments, as CUDA does.
std::vector<std::vector<char>> copy_arguments(const Kernel& kernel, void* const* arguments) {
  std::vector<std::vector<char>> copies;
  for (unsigned index = 0; index < kernel.parameter_count; ++index) {
    auto* bytes = static_cast<const char*>(arguments[index]);
    copies.emplace_back(bytes, bytes + kernel.parameters[index].bytes);
  }
  return copies;
}

}  // namespace

Function* find_function(CUfunction function) { return functions().find(function); }

}  // namespace emulator

using namespace emulator;

// ---- modules ----------------------------------------------------------------------------------------------------------

CUDA_API cuModuleLoad(CUmodule* module, const char* path) {
  Call call;
  if (call.result) return call.result;
  auto loaded = std::make_unique<Module>();
  if (CUresult error = add_kernels(*loaded, path)) return error;
  *module = modules().add(std::move(loaded));
  return CUDA_SUCCESS;
}

CUDA_API cuModuleLoadData(CUmodule* module, const void*) {
  Call call;
  if (call.result) return call.result;
  auto loaded = std::make_unique<Module>();
  for (const std::string& path : module_paths())
    if (CUresult error = add_kernels(*loaded, path)) return error;
  *module = modules().add(std::move(loaded));
  return CUDA_SUCCESS;
}

CUDA_API cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(module, image);
}
CUDA_API cuModuleLoadFatBinary(CUmodule* module, const void* image) { return cuModuleLoadData(module, image); }

CUDA_API cuModuleUnload(CUmodule module) {
  Call call;
  if (call.result) return call.result;
  return modules().remove(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_API cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Call call;
  if (call.result) return call.result;
  Module* owner = modules().find(module);
  if (owner == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  auto found = owner->functions.find(name);
  if (found == owner->functions.end())
    return report(CUDA_ERROR_NOT_FOUND, "no kernel %s among the %zu of this module", name, owner->functions.size());
  *function = functions().add(std::make_unique<Function>(found->second));
  return CUDA_SUCCESS;
}

// ---- functions --------------------------------------------------------------------------------------------------------

CUDA_API cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  Call call;
  if (call.result) return call.result;
  Function* found = find_function(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute != 8) return CUDA_SUCCESS;  // all but MAX_DYNAMIC_SHARED_SIZE_BYTES are hints
  unsigned limit = device_limits().shared_per_block_optin;
  if (value < 0 || static_cast<unsigned>(value) > limit)
    return report(CUDA_ERROR_INVALID_VALUE, "%s: %d bytes of dynamic shared memory, this device has %u a block",
                  found->kernel->name, value, limit);
  found->max_dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUDA_API cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
  Call call;
  if (call.result) return call.result;
  Function* found = find_function(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *value = attribute == 0 ? found->kernel->max_threads : attribute == 8 ? found->max_dynamic_shared : 0;
  return CUDA_SUCCESS;
}

CUDA_API cuFuncSetCacheConfig(CUfunction, int) { return CUDA_SUCCESS; }

// CUDA 12.4: the offset and size of each parameter; CUDA_ERROR_INVALID_VALUE past the last one.
CUDA_API cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* bytes) {
  Call call;
  if (call.result) return call.result;
  Function* found = find_function(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (index >= found->kernel->parameter_count) return CUDA_ERROR_INVALID_VALUE;
  size_t at = 0;
  for (size_t before = 0; before <= index; ++before) {
    size_t size = found->kernel->parameters[before].bytes, alignment = std::min<size_t>(size & -size, 16);
    at = (at + alignment - 1) / alignment * alignment;
    if (before == index) *offset = at;
    at += size;
  }
  if (bytes != nullptr) *bytes = found->kernel->parameters[index].bytes;
  return CUDA_SUCCESS;
}

CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, CUfunction function, int block, size_t dynamic_shared) {
  Call call;
  if (call.result) return call.result;
  if (find_function(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (block < 1) return CUDA_ERROR_INVALID_VALUE;
  const DeviceLimits& limits = device_limits();
  size_t by_shared = limits.shared_per_multiprocessor / (dynamic_shared + 1024);  // 1 KiB of each block is the system's
  size_t by_threads = limits.threads_per_multiprocessor / block;
  *count = std::min<size_t>({by_shared, by_threads, limits.blocks_per_multiprocessor});
  return CUDA_SUCCESS;
}

CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, CUfunction function, int block,
                                                              size_t dynamic_shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(count, function, block, dynamic_shared);
}

// ---- launches ---------------------------------------------------------------------------------------------------------

CUDA_API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned dynamic_shared, CUstream stream, void** arguments,
                        void** extra) {
  Call call;
  if (call.result) return call.result;
  Function* found = find_function(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (extra != nullptr || (arguments == nullptr && found->kernel->parameter_count > 0))
    return report(CUDA_ERROR_NOT_SUPPORTED, "launch of %s: arguments must come as an array of pointers", found->kernel->name);
  LaunchShape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared};
  if (CUresult error = check_shape(*found, shape)) return error;
  if (CUresult error = check_arguments(*found->kernel, arguments)) return error;
  return submit(stream, [function = *found, shape, copies = copy_arguments(*found->kernel, arguments)]() mutable {
    std::vector<void*> pointers;
    for (auto& copy : copies) pointers.push_back(copy.data());
    return launch_now(function, shape, pointers.data());
  });
}
