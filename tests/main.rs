//! One test binary: what a machine without a GPU can show.

mod cli;
mod cuda;
mod data;
mod emulator;
mod golden;
mod gpu_kit;
mod gradcheck;
mod graph;
mod metrics;
mod noise;
mod nvcc;
mod onnx;
mod protobuf;
mod report;
mod tensorboard;
mod train;
