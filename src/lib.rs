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
//! | [`ops`] | the ops, one file or folder each: shape rule, gradient, CPU code, CUDA launches, cases; the kernels themselves are in `kernels/<op>.cu` |
//! | [`plan`] | which nodes run, in which order, and where in one arena each value lies |
//! | [`device`] | the seam: a device holds memory and runs plans; [`device::cpu`], [`device::cuda`], and the emulated driver that [`device::emulator`] opens |
//! | [`model`] | the networks, their parameters and weights files, and a network on a device |
//! | [`train`] | settings, the training loop, its log |
//! | [`predict`] | inference on whole volumes |
//! | [`reproduce`] | the paper's ablations, trained again on one data set |
//! | [`preprocessing`] | what a slice goes through before a network |
//! | [`data`] | scans, data sets, slices, batches, synthetic patients |
//! | [`noise`] | masks made worse on purpose, to a wanted overlap |
//! | [`metrics`] | every metric of the paper's tables |
//! | [`report`] | curves, pictures of masks, `report.html` |
//! | [`onnx`], [`tensorboard`] | what other programs read, written with [`protobuf`] |
//! | [`cli`] | the commands |
//! | [`gradcheck`] | every op against central differences |
//! | [`checksum`], [`resources`] | SHA-256; how much memory and disk are free |
//! | [`floors`] | what a step on a GPU costs at least |
//! | [`error`], [`suggestion`] | the one error type; what a mistyped name may have meant |
//!
//! # A training step
//!
//! ```
//! use rarunet_cuda::device::cpu::CpuDevice;
//! use rarunet_cuda::model::{Mode, Model, Network};
//!
//! # fn main() -> rarunet_cuda::Result<()> {
//! // A narrow RAR-U-Net with random weights, and a step of two images of 32 x 32 pixels.
//! let model = Model::new("rar-unet", [8, 8, 16, 16, 16])?;
//! let mut network = Network::<f32>::new(model, Box::new(CpuDevice::new()?))?;
//! network.initialise(1)?;
//! let step = network.load(Mode::Train, 2, [32, 32])?;
//! println!("{} MiB", network.planned_bytes() >> 20);
//!
//! // Bright squares on a dark ground, and their masks.
//! let mask: Vec<f32> = (0..2 * 32 * 32).map(|i| f32::from(u8::from(i % 32 > 8 && i / 32 % 32 > 12))).collect();
//! let image: Vec<f32> = mask.iter().map(|mask| 2.0 * mask - 0.5).collect();
//! network.write_batch(&step, &image, &mask, &[1.0, 1.0])?;
//! let first = network.train(&step, 1e-2, 1)?.batch;
//! let mut last = first;
//! for number in 2..=20 {
//!     last = network.train(&step, 1e-2, number)?.batch;
//! }
//! assert!(last < 0.5 * first, "the Dice loss fell from {first} to {last}");
//! # Ok(())
//! # }
//! ```
//!
//! What depends on what: `tensor <- graph, ops <- plan <- device <- model <- train, predict <- cli`. Graph, ops and
//! devices know one another: a graph holds ops, an op says how each device runs it. Data, metrics and report stand
//! apart from the engine. Only `device` says `unsafe`, and the cache of slices, which maps files.

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
pub mod onnx;
pub mod ops;
pub mod plan;
pub mod postprocessing;
pub mod predict;
pub mod preprocessing;
pub mod protobuf;
pub mod report;
pub mod reproduce;
pub mod resources;
pub mod suggestion;
pub mod tensor;
pub mod tensorboard;
pub mod train;

pub use error::{Error, Result};
