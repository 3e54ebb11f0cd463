//! The training masks that are likely wrong, as a run ranked them, with the pictures that it made of some.

use crate::Result;
use crate::train::suspects::Suspect;
use std::path::Path;

/// Ranked masks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Suspects {
    /// Worst first.
    pub masks: Vec<Suspect>,
    /// What is seen of some of them, worst first, each with a label and the bytes of a PNG.
    pub pictures: Vec<(String, Vec<u8>)>,
}

impl Suspects {
    /// What a run's folder has, if anything.
    ///
    /// # Errors
    /// If the list is there and cannot be read.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(Suspect::FILE);
        if !path.exists() {
            return Ok(None);
        }
        let masks = Suspect::read_all(&path)?;
        let picture = |(rank, mask): (usize, &Suspect)| {
            let png = std::fs::read(run.join("suspects").join(mask.picture(rank))).ok()?;
            Some((format!("{}. {}, slice {}", rank + 1, mask.case, mask.slice), png))
        };
        let pictures = masks.iter().enumerate().take(Suspect::PICTURED).filter_map(picture).collect();
        Ok(Some(Suspects { masks, pictures }))
    }
}
