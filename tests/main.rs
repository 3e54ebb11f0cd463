//! One test binary: what a machine without a GPU can show.

mod data;
mod golden;
mod graph;
mod metrics;
mod report;
