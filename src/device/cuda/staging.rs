//! Pinned memory of the host, through which inputs go to the device: a copy from there needs no waiting, so that a step's
//! inputs can be written while the step before still runs.

use super::driver::Driver;
use crate::Result;
use cudarc::driver::{CudaContext, result};
use std::ptr::NonNull;
use std::sync::Arc;

/// There is room for so many of the largest input: a step's image and mask, and what is small, well before it must wait.
const INPUTS: usize = 4;

/// Bytes that are filled one after the other until the device is known to have read them.
pub struct Staging {
    memory: Option<(NonNull<u8>, Arc<CudaContext>)>,
    bytes: usize,
    used: usize,
}

// SAFETY: the memory is this object's alone, and is reached through `&mut self`.
unsafe impl Send for Staging {}

impl Staging {
    pub fn new() -> Self {
        Staging { memory: None, bytes: 0, used: 0 }
    }

    /// A copy of `data`, to be copied to the device from. Where there is no more room it waits until all is read.
    pub fn stage(&mut self, driver: &Driver, data: &[u8]) -> Result<&[u8]> {
        if self.used + data.len() > self.bytes {
            driver.synchronize()?;
            self.clear();
        }
        if INPUTS * data.len() > self.bytes {
            driver.synchronize()?; // what is there may still be read
            self.grow(driver, INPUTS * data.len())?;
        }
        let Some((memory, _)) = &self.memory else { return Ok(&[]) };
        // SAFETY: from `used` on there is room for all of `data`; the device reads what is before it at most.
        let staged = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().add(self.used), data.len()) };
        staged.copy_from_slice(data);
        self.used += data.len();
        Ok(staged)
    }

    /// Says that the device has read all.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    fn grow(&mut self, driver: &Driver, bytes: usize) -> Result<()> {
        self.free();
        (self.bytes, self.used) = (0, 0);
        driver.bind()?;
        // SAFETY: the context is bound; what is allocated is written before it is read.
        let memory = unsafe { result::malloc_host(bytes, 0) };
        let memory = memory.map_err(|error| driver.error("pinned memory", error))?;
        self.memory = NonNull::new(memory.cast()).map(|memory| (memory, driver.context.clone()));
        self.bytes = bytes;
        Ok(())
    }

    fn free(&mut self) {
        let Some((memory, context)) = self.memory.take() else { return };
        // The context may be gone when a device is dropped; its memory then is, too.
        if context.bind_to_thread().is_ok() {
            // SAFETY: malloc_host gave it, and it is freed once.
            let _ = unsafe { result::free_host(memory.as_ptr().cast()) };
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.free();
    }
}
