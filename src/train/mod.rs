//! Training: from a data set and settings to weights, epoch by epoch.

mod record;
mod run;
mod schedule;
mod settings;

pub use record::EpochRecord;
pub use run::{Observer, Outcome, Run, Silent, Summary};
pub use schedule::Schedule;
pub use settings::Settings;
