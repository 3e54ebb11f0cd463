//! Training: from a data set and settings to weights, epoch by epoch.

pub mod adl;
mod learner;
mod record;
mod review;
mod run;
mod schedule;
mod settings;
mod state;
pub mod suspects;

pub use learner::{Evaluated, Learner};
pub use record::EpochRecord;
pub use run::{Observer, Outcome, Run, Silent, Summary};
pub use schedule::Schedule;
pub use settings::Settings;
pub use state::{LearnerState, State};
