//! The paper's ablations, trained again on one data set: Table 4 (the parts of the network), Table 5 (adaptive
//! denoising learning) and a comparison of all that can be done about noisy masks.

mod report;
mod tables;
mod trial;

pub use report::Report;
pub use tables::{Paper, Row, Table};
pub use trial::{Scores, Trial, run};
