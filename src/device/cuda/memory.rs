//! The memories of a device: the arena, and the regions of state.

use super::driver::Driver;
use crate::Result;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaSlice, DriverError, result};

/// Whether memory that grows keeps what it holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// What is added is zero.
    Kept,
    /// All of it is poison.
    Lost,
}

/// What poison is made of: four of these bytes are an f32 that is not a number, two a 16-bit one.
const POISON: u8 = 0xFF;

/// Bytes on the device, none at first.
pub struct DeviceMemory(Option<CudaSlice<u8>>);

impl DeviceMemory {
    pub fn new() -> Self {
        DeviceMemory(None)
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, CudaSlice::len)
    }

    /// The address of the first byte, 0 if there is none.
    pub fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, |memory| {
            use cudarc::driver::DevicePtr;
            memory.device_ptr(memory.stream()).0
        })
    }

    /// Makes room for `count` bytes. Returns whether the memory moved.
    pub fn grow(&mut self, driver: &Driver, count: usize, content: Content) -> Result<bool> {
        if count <= self.len() {
            return Ok(false);
        }
        if content == Content::Lost {
            self.0 = None; // freed first, so that both need not fit
            driver.synchronize()?;
        }
        // SAFETY: the memory is filled below before anybody reads it.
        let allocated = unsafe { driver.stream.alloc::<u8>(count) };
        let mut memory = allocated.map_err(|error| out_of_memory(driver, count, error))?;
        let error = |error| driver.error("memory", error);
        match (content, &self.0) {
            (Content::Kept, old) => {
                driver.stream.memset_zeros(&mut memory).map_err(error)?;
                if let Some(old) = old {
                    driver.stream.memcpy_dtod(old, &mut memory).map_err(error)?;
                }
                self.0 = Some(memory);
            }
            (Content::Lost, _) => {
                self.0 = Some(memory);
                self.poison(driver)?;
            }
        }
        driver.synchronize()?;
        Ok(true)
    }

    /// Fills the memory with a pattern that is not a number.
    pub fn poison(&mut self, driver: &Driver) -> Result<()> {
        let bytes = self.len();
        if bytes == 0 {
            return Ok(());
        }
        driver.bind()?;
        // SAFETY: the memory has that many bytes.
        unsafe { result::memset_d8_async(self.address(), POISON, bytes, driver.stream.cu_stream()) }
            .map_err(|error| driver.error("memory", error))
    }

    /// Copies `data` to the bytes from `start` on.
    ///
    /// # Panics
    /// If there are no such bytes, which is a bug.
    pub fn write(&mut self, driver: &Driver, start: usize, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let memory = self.0.as_mut().expect("the memory was allocated");
        let mut part = memory.slice_mut(start..start + data.len());
        driver.stream.memcpy_htod(data, &mut part).map_err(|error| driver.error("copy to the device", error))
    }

    /// Copies the bytes from `start` on to `data`, when all that was launched before is done.
    ///
    /// # Panics
    /// If there are no such bytes, which is a bug.
    pub fn read(&self, driver: &Driver, start: usize, data: &mut [u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let memory = self.0.as_ref().expect("the memory was allocated");
        let part = memory.slice(start..start + data.len());
        driver.stream.memcpy_dtoh(&part, data).map_err(|error| driver.error("copy from the device", error))?;
        driver.synchronize()
    }
}

fn out_of_memory(driver: &Driver, count: usize, error: DriverError) -> crate::Error {
    if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return driver.error("memory", error);
    }
    let mib = |bytes: usize| bytes >> 20;
    let (free, total) = driver.context.mem_get_info().unwrap_or((0, 0));
    driver.message(format!(
        "no room for the {} MiB that were planned: {} of {} MiB are free; lower --batch, --size or --widths",
        mib(count),
        mib(free),
        mib(total),
    ))
}
