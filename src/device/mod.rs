//! Devices.

pub mod emulator;
pub mod kernels;
