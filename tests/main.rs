//! One test binary: what a machine without a GPU can show.

mod cli;
mod data;
mod golden;
mod gradcheck;
mod graph;
mod metrics;
mod report;
mod train;
