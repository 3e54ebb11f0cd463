//! Training: from a data set and settings to weights, epoch by epoch.

pub mod adl;
pub mod checkpoint;
mod folder;
mod learner;
pub mod manifest;
pub mod needs;
mod record;
mod review;
mod run;
mod schedule;
mod settings;
mod state;
pub mod suspects;

pub(crate) use folder::CONFIG;
pub use folder::{RunFolder, checkpoints};
pub use learner::{Evaluated, Learner};
pub use manifest::Manifest;
pub use record::EpochRecord;
pub use run::{Observer, Outcome, Run, Silent, Summary};
pub use schedule::Schedule;
pub use settings::Settings;
pub use state::{LearnerState, State};
