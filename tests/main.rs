//! One test binary: what a machine without a GPU can show.

mod cuda;
mod data;
mod emulator;
mod golden;
mod metrics;
