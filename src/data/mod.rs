//! Volumes, data sets and what becomes of them on the way to the network.

pub mod phantom;
pub mod volume;

pub use volume::{Geometry, Volume};
