// Faults inside kernels (a page that no allocation covers, an integer division by zero, a stack that is too small)
// become errors of the launch: the signal handler leaves the fiber for the scheduler, which reports.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "launch.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace emulator {
namespace {

constexpr int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
struct sigaction before[65];

void on_fault(int signal, siginfo_t* information, void* context) {
  Thread* thread = current;
  if (thread == nullptr) {  // not a kernel's fault: as if this handler were not there
    sigaction(signal, &before[signal], nullptr);
    if (information->si_code <= 0) raise(signal);  // sent by a process: it does not come again by itself
    return;
  }
  Block* block = thread->block;
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  block->fault_signal = signal;
  block->fault_address = information->si_addr;
  block->fault_instruction = reinterpret_cast<void*>(registers[REG_RIP]);
  // switch_context by hand; `current` keeps naming the thread, for the report
  registers[REG_RSP] = reinterpret_cast<greg_t>(block->scheduler.stack_pointer);
  registers[REG_RBP] = reinterpret_cast<greg_t>(block->scheduler.frame_pointer);
  registers[REG_RIP] = reinterpret_cast<greg_t>(block->scheduler.instruction);
}

// "file:line" of an instruction in a module, if binutils can tell; else nothing.
std::string source_line(void* instruction) {
  Dl_info module;
  if (dladdr(instruction, &module) == 0) return "";
  char command[4352], line[1024] = "";
  auto offset = static_cast<char*>(instruction) - static_cast<char*>(module.dli_fbase);
  snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", module.dli_fname, offset);
  FILE* output = popen(command, "r");
  if (output == nullptr) return "";
  bool read = fgets(line, sizeof line, output) != nullptr;
  pclose(output);
  line[strcspn(line, " \n")] = 0;
  return !read || line[0] == '?' ? "" : line;
}

}  // namespace

void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int signal : caught) sigaction(signal, &action, &before[signal]);
}

void catch_faults_on_this_os_thread() {
  stack_t stack = {};
  if (sigaltstack(nullptr, &stack) == 0 && !(stack.ss_flags & SS_DISABLE)) return;
  stack.ss_size = 64 << 10;
  stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stack.ss_flags = 0;
  if (stack.ss_sp != MAP_FAILED) sigaltstack(&stack, nullptr);
}

void report_fault(Block* block, const Thread* thread) {
  auto address = reinterpret_cast<uintptr_t>(block->fault_address);
  auto stacks = reinterpret_cast<uintptr_t>(block->stacks);
  auto shared_end = reinterpret_cast<uintptr_t>(block->dynamic_shared_end);
  std::string line = source_line(block->fault_instruction);
  if (!line.empty()) line = " at " + line;
  char message[768];
  CUresult code = CUDA_ERROR_ILLEGAL_ADDRESS;
  if (block->fault_signal == SIGFPE) {
    code = CUDA_ERROR_LAUNCH_FAILED;
    snprintf(message, sizeof message, "integer division by zero");
  } else if (block->fault_signal == SIGILL || block->fault_signal == SIGTRAP) {
    code = CUDA_ERROR_ILLEGAL_INSTRUCTION;
    snprintf(message, sizeof message, "trap");
  } else if (address - stacks < size_t{max_threads_per_block} * stack_bytes) {
    code = CUDA_ERROR_HARDWARE_STACK_ERROR;
    snprintf(message, sizeof message, "stack overflow: the emulator gives each thread %u bytes", stack_bytes - page_bytes);
  } else if (address - shared_end < page_bytes) {
    snprintf(message, sizeof message, "illegal address%s: byte %zu of %u bytes of dynamic shared memory",
             line.c_str(), address - reinterpret_cast<uintptr_t>(block->dynamic_shared), block->launch->dynamic_shared);
  } else {
    snprintf(message, sizeof message, "illegal address %p%s: %s", block->fault_address, line.c_str(),
             describe_address(address).c_str());
  }
  fail_launch(block, thread, code, message);
}

}  // namespace emulator
