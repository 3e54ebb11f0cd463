//! RAR-U-Net in hand-written CUDA.

pub mod data;
pub mod device;
pub mod error;
pub mod gradcheck;
pub mod graph;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod plan;
pub mod predict;
pub mod report;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
