//! How long work takes on the device, by events in its stream.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use std::sync::Arc;

/// Runs right before the one that is timed, so that the device does not wait for the host.
const BUSY: usize = 2;
/// What is timed is enqueued until it takes about so many seconds, and so often at most.
const LONG: f64 = 1e-3;
const MOST_TIMES: f64 = 8.0;

pub struct Timer {
    stream: Arc<CudaStream>,
    events: [CudaEvent; 2],
    repeats: usize,
}

fn text(error: DriverError) -> String {
    format!("CUDA: {:?}", error.0)
}

impl Timer {
    pub fn new(stream: &Arc<CudaStream>, repeats: usize) -> Result<Self, String> {
        let event = || stream.context().new_event(Some(CU_EVENT_DEFAULT)).map_err(text);
        Ok(Timer { stream: stream.clone(), events: [event()?, event()?], repeats })
    }

    /// The seconds of work that is enqueued at once: the median.
    pub fn seconds(&self, mut enqueue: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
        let times = (LONG / self.once(1, &mut enqueue)?).ceil().clamp(1.0, MOST_TIMES) as usize;
        let mut seconds = Vec::with_capacity(self.repeats);
        for _ in 0..self.repeats {
            seconds.push(self.once(times, &mut enqueue)?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }

    /// The seconds of work that is enqueued some times in a row, by event, of one time.
    pub fn once(&self, times: usize, mut enqueue: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
        (0..BUSY).try_for_each(|_| enqueue())?;
        self.events[0].record(&self.stream).map_err(text)?;
        (0..times).try_for_each(|_| enqueue())?;
        self.events[1].record(&self.stream).map_err(text)?;
        self.synchronize()?;
        Ok(f64::from(self.events[0].elapsed_ms(&self.events[1]).map_err(text)?) / 1e3 / times as f64)
    }

    pub fn synchronize(&self) -> Result<(), String> {
        self.stream.synchronize().map_err(text)
    }

    /// Work as a graph, which a launch enqueues at once; nothing runs.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), String>) -> Result<CudaGraph, String> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(text)?;
        let done = work();
        let captured = self.stream.end_capture(CUgraphInstantiate_flags(0)); // the capture must end in any case
        done?;
        captured.map_err(|error| format!("capture: {}", text(error)))?.ok_or("capture: no graph".into())
    }

    /// Room for tensors that are all zero.
    pub fn room(&self, bytes: usize) -> Result<Room, String> {
        Ok(Room(self.stream.alloc_zeros(bytes).map_err(text)?))
    }

    /// Writes bytes to an address on the device.
    ///
    /// # Safety
    /// There must be room for them.
    pub unsafe fn write(&self, to: u64, data: &[u8]) -> Result<(), String> {
        self.stream.context().bind_to_thread().map_err(text)?;
        // SAFETY: as the caller says; the data outlives the copy.
        unsafe { result::memcpy_htod_async(to, data, self.stream.cu_stream()) }.map_err(text)?;
        self.synchronize()
    }

    /// Reads bytes from an address on the device.
    ///
    /// # Safety
    /// There must be so many.
    pub unsafe fn read(&self, from: u64, data: &mut [u8]) -> Result<(), String> {
        self.stream.context().bind_to_thread().map_err(text)?;
        // SAFETY: as the caller says; the data outlives the copy.
        unsafe { result::memcpy_dtoh_async(data, from, self.stream.cu_stream()) }.map_err(text)?;
        self.synchronize()
    }

    /// Enqueues a copy from one place on the device to another.
    ///
    /// # Safety
    /// There must be so many bytes in both places.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        self.stream.context().bind_to_thread().map_err(text)?;
        // SAFETY: as the caller says.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(text)
    }
}

/// Memory on the device.
pub struct Room(CudaSlice<u8>);

impl Room {
    pub fn address(&self) -> u64 {
        self.0.device_ptr(self.0.stream()).0
    }
}

pub fn launch(graph: &CudaGraph) -> Result<(), String> {
    graph.launch().map_err(text)
}
