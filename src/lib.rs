//! RAR-U-Net in hand-written CUDA and Rust: vertebra segmentation in CT, without a machine learning framework.
//!
//! The paper: Wang, Zhang, Voiculescu, "RAR-U-Net: a residual encoder to attention decoder by residual
//! connections framework for spine segmentation under noisy labels".
//!
//! # The map
//!
//! A **graph, then a plan, then a step.**
//!
//! | module | what it is for |
//! |---|---|
//! | [`tensor`] | shapes and how channels are laid out (channels last, padded slices) |
//! | [`graph`] | ops applied to values, and their derivative as more of the same graph |
//! | [`ops`] | the ops, one file each: shape rule, gradient, CPU code, CUDA launches, cases; the kernels themselves are in `kernels/<op>.cu` |
//! | [`plan`] | which nodes run, in which order, and where in one arena each value lies |
//! | [`device`] | the seam: a device holds memory and runs plans; [`device::cpu`], [`device::cuda`], and the emulated driver that [`device::emulator`] opens |
//! | [`model`] | the networks, their parameters and weights files, and a network on a device |
//! | [`train`] | settings, the training loop, its log |
//! | [`predict`] | inference on whole volumes |
//! | [`preprocessing`] | what a slice goes through before a network |
//! | [`data`] | scans, data sets, slices, batches, synthetic patients |
//! | [`noise`] | masks made worse on purpose, to a wanted overlap |
//! | [`metrics`] | every metric of the paper's tables |
//! | [`report`] | curves, pictures of masks, `report.html` |
//! | [`cli`] | the commands |
//! | [`gradcheck`] | every op against central differences |
//! | [`checksum`], [`resources`] | SHA-256; how much memory and disk are free |
//! | [`floors`] | what a step on a GPU costs at least |
//! | [`error`] | the one error type |
//!
//! What depends on what: `tensor <- graph, ops <- plan <- device <- model <- train, predict <- cli`. Graph, ops and
//! devices know one another: a graph holds ops, an op says how each device runs it. Data, metrics and report stand
//! apart from the engine. Only `device` says `unsafe`.

pub mod checksum;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod floors;
pub mod gradcheck;
pub mod graph;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod ops;
pub mod plan;
pub mod postprocessing;
pub mod predict;
pub mod preprocessing;
pub mod report;
pub mod reproduce;
pub mod resources;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
