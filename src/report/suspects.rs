//! The training masks that are likely wrong, as a run ranked them: `suspects.csv` in its folder, worst first, with
//! the columns case, slice and others, and pictures of some in `suspects/`, named by rank, case and slice.

use crate::{Error, Result};
use std::path::Path;

/// Ranked masks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suspects {
    /// The file's columns.
    pub columns: Vec<String>,
    /// As many fields as columns, worst first.
    pub rows: Vec<Vec<String>>,
    /// What is seen of some of them, worst first, each with a label and the bytes of a PNG.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// How many pictures are shown.
const PICTURED: usize = 24;

impl Suspects {
    /// What a run's folder has, if anything.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join("suspects.csv");
        if !path.exists() {
            return Ok(None);
        }
        let broken = |error: csv::Error| Error::file(&path, error.to_string());
        let mut reader = csv::Reader::from_path(&path).map_err(broken)?;
        let fields = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<String>>();
        let columns = fields(reader.headers().map_err(broken)?);
        let rows =
            reader.records().map(|row| Ok(fields(&row?))).collect::<std::result::Result<_, _>>().map_err(broken)?;
        let rows: Vec<Vec<String>> = rows;
        let column = |name: &str| columns.iter().position(|column| column == name);
        let mut pictures = Vec::new();
        if let (Some(case), Some(slice)) = (column("case"), column("slice")) {
            for (rank, row) in rows.iter().enumerate().take(PICTURED) {
                let (case, slice) = (&row[case], &row[slice]);
                let name = format!("{:03}-{case}-{slice}.png", rank + 1);
                let found = std::fs::read(run.join("suspects").join(name)).ok();
                if let Some(png) = found {
                    pictures.push((format!("{}. {case}, slice {slice}", rank + 1), png));
                }
            }
        }
        Ok(Some(Suspects { columns, rows, pictures }))
    }
}
