// The emulated driver API: streams, events, and graphs captured from streams.
//
// Work is done when it is submitted, so streams need no queues. What can go wrong with them still can: the rules of
// capturing are checked as the driver checks them.
#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "driver.hpp"
#include "memory.hpp"

namespace emulator {
namespace {

using Clock = std::chrono::steady_clock;
using Work = std::function<CUresult()>;

// How much of each stream's captured work something comes after.
using Progress = std::map<CUstream, size_t>;

struct Node {
  Work work;
  CUstream stream;  // whose captured work it is part of
  Progress after;
};

struct Graph {
  std::vector<Node> nodes;  // in the order of capture, which respects every dependency
};

struct Capture {
  Graph graph;
  CUstream origin;
  int mode;
  std::thread::id owner;
  std::set<CUstream> members;
  bool valid = true, ended = false;
};

struct Stream {
  std::shared_ptr<Capture> capture;
  Progress progress;
};

struct Event {
  bool timing, recorded = false;
  Clock::time_point time;
  std::shared_ptr<Capture> capture;  // set when it was last recorded in a capture
  Progress progress;
};

struct Objects {
  Stream legacy, per_thread;
  Handles<CUstream, Stream> streams;
  Handles<CUevent, Event> events;
  Handles<CUgraph, Graph> graphs;
  Handles<CUgraphExec, std::shared_ptr<const Graph>> executables;
  std::set<std::shared_ptr<Capture>> captures;  // those under way
};

Objects& objects() {
  static auto* instance = new Objects;
  return *instance;
}

Stream* find_stream(CUstream stream) {
  uintptr_t value = reinterpret_cast<uintptr_t>(stream);
  if (value <= 1) return &objects().legacy;       // null or CU_STREAM_LEGACY
  if (value == 2) return &objects().per_thread;   // CU_STREAM_PER_THREAD
  return objects().streams.find(stream);
}

void join(Progress& to, const Progress& from) {
  for (auto& [stream, count] : from) to[stream] = std::max(to[stream], count);
}

// The calls that CUDA forbids during a capture also invalidate it.
CUresult forbid(Capture& capture, const char* operation) {
  capture.valid = false;
  return report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s is not permitted while a stream is capturing", operation);
}

// Any order that the dependencies allow may be a GPU's. The next node is the first of one of the captured streams.
CUresult run_graph(const Graph& graph) {
  std::map<CUstream, std::deque<size_t>> left;
  for (size_t node = 0; node < graph.nodes.size(); ++node) left[graph.nodes[node].stream].push_back(node);
  Progress done;
  for (size_t count = 0; count < graph.nodes.size(); ++count) {
    std::vector<uint32_t> ready;  // in the order of capture
    for (auto& [stream, nodes] : left) {
      auto is_done = [&](auto& needed) { return done[needed.first] >= needed.second; };
      if (nodes.empty()) continue;
      const Progress& after = graph.nodes[nodes.front()].after;
      if (std::all_of(after.begin(), after.end(), is_done)) ready.push_back(nodes.front());
    }
    std::sort(ready.begin(), ready.end());
    const Node& node = graph.nodes[ready[choose(launch_order(), count, ready.size())]];
    if (CUresult error = node.work()) return error;
    left[node.stream].pop_front();
    ++done[node.stream];
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUresult submit(CUstream handle, Work work) {
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture == nullptr) return work();
  if (!stream->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream->capture->graph.nodes.push_back({std::move(work), handle, stream->progress});
  ++stream->progress[handle];
  return CUDA_SUCCESS;
}

CUresult check_not_capturing(CUstream handle, const char* operation) {
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return stream->capture == nullptr ? CUDA_SUCCESS : forbid(*stream->capture, operation);
}

CUresult check_nothing_captures(const char* operation) {
  enum { global, thread_local_mode, relaxed };
  for (auto& capture : objects().captures) {
    bool concerned = capture->mode == global ||
                     (capture->mode == thread_local_mode && capture->owner == std::this_thread::get_id());
    if (concerned) return forbid(*capture, operation);
  }
  return CUDA_SUCCESS;
}

}  // namespace emulator

using namespace emulator;

// ---- streams ----------------------------------------------------------------------------------------------------------

CUDA_API cuStreamCreate(CUstream* stream, unsigned) {
  Call call;
  if (call.result) return call.result;
  *stream = objects().streams.add(std::make_unique<Stream>());
  return CUDA_SUCCESS;
}

CUDA_API cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

CUDA_API cuStreamDestroy_v2(CUstream stream) {
  Call call;
  if (call.result) return call.result;
  return objects().streams.remove(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_API cuStreamGetFlags(CUstream, unsigned* flags) {
  *flags = 1;  // CU_STREAM_NON_BLOCKING
  return CUDA_SUCCESS;
}

CUDA_API cuStreamGetPriority(CUstream, int* priority) {
  *priority = 0;
  return CUDA_SUCCESS;
}

CUDA_API cuStreamSynchronize(CUstream stream) {
  Call call;
  if (call.result) return call.result;
  if (CUresult error = check_not_capturing(stream, "cuStreamSynchronize")) return error;
  return check_guards("something before cuStreamSynchronize");
}

CUDA_API cuStreamQuery(CUstream stream) {
  Call call;
  if (call.result) return call.result;
  return check_not_capturing(stream, "cuStreamQuery");
}

CUDA_API cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* data) {
  Call call;
  if (call.result) return call.result;
  return submit(stream, [=] {
    function(data);
    return CUDA_SUCCESS;
  });
}

// ---- events -----------------------------------------------------------------------------------------------------------

CUDA_API cuEventCreate(CUevent* event, unsigned flags) {
  Call call;
  if (call.result) return call.result;
  auto created = std::make_unique<Event>();
  created->timing = !(flags & 2);  // CU_EVENT_DISABLE_TIMING
  *event = objects().events.add(std::move(created));
  return CUDA_SUCCESS;
}

CUDA_API cuEventDestroy_v2(CUevent event) {
  Call call;
  if (call.result) return call.result;
  return objects().events.remove(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_API cuEventRecord(CUevent handle, CUstream stream_handle) {
  Call call;
  if (call.result) return call.result;
  Event* event = objects().events.find(handle);
  Stream* stream = find_stream(stream_handle);
  if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  event->capture = stream->capture;
  event->progress = stream->progress;
  event->recorded = true;
  event->time = Clock::now();
  return CUDA_SUCCESS;
}

CUDA_API cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
  Call call;
  if (call.result) return call.result;
  Event* event = objects().events.find(handle);
  Stream* stream = find_stream(stream_handle);
  if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!event->recorded) return CUDA_SUCCESS;
  if (event->capture == nullptr) {
    if (stream->capture == nullptr) return CUDA_SUCCESS;
    stream->capture->valid = false;
    return report(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                  "cuStreamWaitEvent: the stream is capturing, the event was recorded outside the capture");
  }
  if (event->capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
  if (stream->capture != nullptr && stream->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
  stream->capture = event->capture;  // the stream joins the capture
  stream->capture->members.insert(stream_handle);
  join(stream->progress, event->progress);
  return CUDA_SUCCESS;
}

CUDA_API cuEventSynchronize(CUevent handle) {
  Call call;
  if (call.result) return call.result;
  Event* event = objects().events.find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
  return check_guards("something before cuEventSynchronize");
}

CUDA_API cuEventQuery(CUevent handle) {
  Call call;
  if (call.result) return call.result;
  Event* event = objects().events.find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return event->capture != nullptr ? CUDA_ERROR_CAPTURED_EVENT : CUDA_SUCCESS;
}

CUDA_API cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  Call call;
  if (call.result) return call.result;
  Event *start = objects().events.find(start_handle), *end = objects().events.find(end_handle);
  if (start == nullptr || end == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!start->recorded || !end->recorded || !start->timing || !end->timing)
    return report(CUDA_ERROR_INVALID_HANDLE, "cuEventElapsedTime: both events must be recorded and made with timing");
  if (start->capture != nullptr || end->capture != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return CUDA_SUCCESS;
}

CUDA_API cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

// ---- capture ----------------------------------------------------------------------------------------------------------

CUDA_API cuStreamBeginCapture_v2(CUstream handle, int mode) {
  Call call;
  if (call.result) return call.result;
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (stream == &objects().legacy)
    return report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot capture");
  if (stream->capture != nullptr) return report(CUDA_ERROR_INVALID_VALUE, "the stream is capturing already");
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = handle;
  stream->capture->mode = mode;
  stream->capture->owner = std::this_thread::get_id();
  stream->capture->members.insert(handle);
  stream->progress.clear();
  objects().captures.insert(stream->capture);
  return CUDA_SUCCESS;
}

CUDA_API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  Call call;
  if (call.result) return call.result;
  *graph = nullptr;
  Stream* origin = find_stream(handle);
  if (origin == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  std::shared_ptr<Capture> capture = origin->capture;
  if (capture == nullptr || capture->origin != handle) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  Progress reached = origin->progress;
  CUresult result = capture->valid ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (CUstream member : capture->members) {
    Stream* stream = find_stream(member);
    if (stream == nullptr) continue;  // destroyed meanwhile
    if (result == CUDA_SUCCESS && reached[member] < stream->progress[member]) result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    stream->capture = nullptr;
    stream->progress.clear();
  }
  capture->ended = true;
  objects().captures.erase(capture);
  if (result == CUDA_SUCCESS) *graph = objects().graphs.add(std::make_unique<Graph>(std::move(capture->graph)));
  return result;
}

CUDA_API cuStreamIsCapturing(CUstream handle, int* status) {
  Call call;
  if (call.result) return call.result;
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *status = stream->capture == nullptr ? 0 : stream->capture->valid ? 1 : 2;  // none, active, invalidated
  return CUDA_SUCCESS;
}

// ---- graphs -----------------------------------------------------------------------------------------------------------

// Only the count: nodes have no handles here.
CUDA_API cuGraphGetNodes(CUgraph graph, void** nodes, size_t* count) {
  Call call;
  if (call.result) return call.result;
  Graph* found = objects().graphs.find(graph);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *count = found->nodes.size();
  return nodes == nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

CUDA_API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  Call call;
  if (call.result) return call.result;
  Graph* found = objects().graphs.find(graph);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *executable = objects().executables.add(std::make_unique<std::shared_ptr<const Graph>>(std::make_shared<Graph>(*found)));
  return CUDA_SUCCESS;
}

CUDA_API cuGraphUpload(CUgraphExec executable, CUstream) {
  Call call;
  if (call.result) return call.result;
  return objects().executables.find(executable) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_API cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  Call call;
  if (call.result) return call.result;
  std::shared_ptr<const Graph>* found = objects().executables.find(executable);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return submit(stream, [graph = *found] { return run_graph(*graph); });
}

CUDA_API cuGraphExecDestroy(CUgraphExec executable) {
  Call call;
  if (call.result) return call.result;
  return objects().executables.remove(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_API cuGraphDestroy(CUgraph graph) {
  Call call;
  if (call.result) return call.result;
  return objects().graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
