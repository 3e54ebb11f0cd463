//! RAR-U-Net in hand-written CUDA.

pub mod data;
pub mod device;
pub mod error;
pub mod metrics;

pub use error::{Error, Result};
