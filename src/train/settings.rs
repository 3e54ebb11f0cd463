//! Everything that decides a training run, as `config.toml` has it.

use super::adl::{Adl, Noise};
use super::schedule::Schedule;
use crate::data::split::check_fraction;
use crate::model::{Model, PAPER_WIDTHS};
use crate::preprocessing::{HounsfieldWindow, check_size};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A run's settings; the defaults are the paper's (section 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    pub model: String,
    pub widths: [usize; 5],
    pub epochs: u64,
    pub batch: usize,
    pub learning_rate: f64,
    pub schedule: Schedule,
    /// Height and width of the slices that the network sees, in pixels.
    pub size: usize,
    /// Whether slices are turned by +-90 degrees at random.
    pub augment: bool,
    pub seed: u64,
    /// How masks that may be wrong are treated.
    pub adl: Adl,
    /// How noisy the masks are believed to be: the share of them, and their mean Dice overlap with the truth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_proportion: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_overlap: Option<f64>,
    /// Cases that neither train nor validate.
    pub test_cases: Vec<String>,
    /// The share of the other cases' slices that validates.
    pub validation_fraction: f64,
    /// Labels that are foreground, like `26-33,41`; empty means any above 0.
    pub labels: String,
    pub window: HounsfieldWindow,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model: "rar-unet".into(),
            widths: PAPER_WIDTHS,
            epochs: 50,
            batch: 8,
            learning_rate: 1e-5,
            schedule: Schedule::Constant,
            size: 256,
            augment: true,
            seed: 1,
            adl: Adl::Off,
            noise_proportion: None,
            noise_overlap: None,
            test_cases: Vec::new(),
            validation_fraction: 0.1,
            labels: String::new(),
            window: HounsfieldWindow::default(),
        }
    }
}

impl Settings {
    /// Reads a `config.toml`; what it does not say is as by default.
    ///
    /// # Errors
    /// If it cannot be read, or says what is no setting.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::file(path, format!("line {line}: {}", error.message()))
        })
    }

    /// Checks what can be checked without data, and returns the model.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn check(&self) -> Result<Model> {
        let model = Model { loss: self.adl.loss(), ..Model::new(&self.model, self.widths)? };
        check_size(self.size)?;
        let positive = |name: &str, fine: bool, value: String| match fine {
            true => Ok(()),
            false => Err(Error::Invalid(format!("{name} {value}: it must be above 0"))),
        };
        positive("epochs", self.epochs > 0, self.epochs.to_string())?;
        positive("batch", self.batch > 0, self.batch.to_string())?;
        check_fraction(self.validation_fraction)?;
        let rate = self.learning_rate;
        positive("learning rate", rate > 0.0 && rate.is_finite(), rate.to_string())?;
        let HounsfieldWindow { low, high, .. } = self.window;
        if low.is_nan() || high.is_nan() || low >= high {
            return Err(Error::Invalid(format!("window {low} to {high}: the lower end must be below the upper one")));
        }
        self.adl.check(self.noise()?)?;
        Ok(model)
    }

    /// How noisy the masks are believed to be, if that is said.
    ///
    /// # Errors
    /// If only one half is said, or a number is not a share.
    pub fn noise(&self) -> Result<Option<Noise>> {
        match (self.noise_proportion, self.noise_overlap) {
            (None, None) => Ok(None),
            (Some(proportion), Some(overlap)) => {
                for (name, value) in [("proportion", proportion), ("overlap", overlap)] {
                    if !(0.0..1.0).contains(&value) {
                        let message = format!("noise {name} {value}: it must be at least 0 and below 1");
                        return Err(Error::Invalid(message));
                    }
                }
                Ok(Some(Noise { proportion, overlap }))
            }
            _ => Err(Error::Invalid("give --noise-proportion and --noise-overlap together, or neither".into())),
        }
    }
}
