//! What was measured, as a table in Markdown and as JSON.

use crate::case::{Case, DIRECTIONS};
use crate::measure::Measured;
use rarunet_cuda::device::Precision;
use serde::Serialize;

/// A convolution in one direction.
#[derive(Debug, Serialize)]
pub struct Row {
    pub direction: &'static str,
    pub transposed: bool,
    /// Height and width of the window.
    pub kernel: usize,
    /// Batch, height, width, channels of what the window moves over.
    pub image: [usize; 4],
    pub map: [usize; 4],
    /// How many there are in a step.
    pub count: usize,
    /// Tensors that were used in turn.
    pub sets: usize,
    pub ours_s: Option<f64>,
    pub cudnn_s: Option<f64>,
    /// cuDNN's time over ours.
    pub ratio: Option<f64>,
    /// Of image, map and weights.
    pub bytes: u64,
    pub operations: u64,
    /// The time at the measured ceilings over ours.
    pub of_ceiling: Option<f64>,
    /// The norm of the difference of the two results over the norm.
    pub difference: Option<f64>,
    pub notes: Vec<String>,
}

/// All convolutions in one precision.
#[derive(Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub precision: Precision,
    pub cudnn_version: Option<usize>,
    /// Of a large copy, measured.
    pub gb_per_s: Option<f64>,
    /// Of a large product by cuDNN, measured.
    pub tflop_per_s: Option<f64>,
    pub rows: Vec<Row>,
    /// Convolutions that there was no time for, those with the fewest operations in a step.
    pub missing: usize,
    /// That all took.
    pub seconds: f64,
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let apart: f64 = a.iter().zip(b).map(|(&a, &b)| square(a - b)).sum();
    (apart / a.iter().copied().map(square).sum::<f64>()).sqrt()
}

impl Row {
    pub fn new(case: &Case, count: usize, precision: Precision, sets: usize) -> Self {
        let size = |shape: &rarunet_cuda::tensor::Shape| {
            let [_, height, width] = shape.spatial;
            [shape.batch, height, width, shape.channels.count()]
        };
        Row {
            direction: case.direction,
            transposed: case.transposed,
            kernel: case.window.kernel[1],
            image: size(&case.image),
            map: size(&case.map),
            count,
            sets,
            ours_s: None,
            cudnn_s: None,
            ratio: None,
            bytes: case.bytes(precision),
            operations: case.operations(),
            of_ceiling: None,
            difference: None,
            notes: case.in_full().map(String::from).into_iter().collect(),
        }
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note.replace(['|', '\n'], " "));
    }

    /// Notes cuDNN's time, and whether it computed the same.
    pub fn compare(&mut self, ours: &[f32], theirs: &Measured, same: f64) {
        self.cudnn_s = Some(theirs.seconds);
        if let Some(note) = theirs.note.clone() {
            self.note(note);
        }
        let found = difference(ours, &theirs.result);
        self.difference = found.is_finite().then_some(found);
        if found.is_nan() || found > same || ours.len() != theirs.result.len() {
            self.note("the results DIFFER".into());
        }
    }

    pub fn finish(&mut self, report: &Report) {
        let Some(ours) = self.ours_s else { return };
        self.ratio = self.cudnn_s.map(|theirs| theirs / ours);
        let memory = report.gb_per_s.map(|speed| self.bytes as f64 / (speed * 1e9));
        let products = report.tflop_per_s.map(|speed| self.operations as f64 / (speed * 1e12));
        self.of_ceiling = memory.map(|memory| memory.max(products.unwrap_or(0.0)) / ours);
    }

    fn name(&self) -> String {
        let Row { kernel, image: [batch, height, width, channels], map: [.., map], transposed, .. } = self;
        let (kind, [from, to]) = if *transposed { ("transposed ", [map, channels]) } else { ("", [channels, map]) };
        format!("{kind}{kernel}x{kernel}, {from} to {to}, {batch} x {height} x {width}")
    }

    /// A line of the table.
    pub fn text(&self) -> String {
        let microseconds = |seconds: Option<f64>| cell(seconds.map(|seconds| seconds * 1e6), 1);
        format!(
            "| {} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {} | {} | {} |\n",
            self.direction,
            self.name(),
            self.count,
            microseconds(self.ours_s),
            microseconds(self.cudnn_s),
            cell(self.ratio, 2),
            self.bytes as f64 / 1e6,
            self.operations as f64 / 1e9,
            self.of_ceiling.map_or("-".into(), |share| format!("{:.0}%", 100.0 * share)),
            self.difference.map_or("-".into(), |difference| format!("{difference:.0e}")),
            self.notes.join("; ")
        )
    }
}

impl Report {
    pub fn new(
        device: String,
        precision: Precision,
        cudnn_version: Option<usize>,
        ceilings: Option<(f64, Option<f64>)>,
    ) -> Self {
        Report {
            device,
            precision,
            cudnn_version,
            gb_per_s: ceilings.map(|(bytes, _)| bytes / 1e9),
            tflop_per_s: ceilings.and_then(|(_, operations)| operations).map(|operations| operations / 1e12),
            rows: Vec::new(),
            missing: 0,
            seconds: 0.0,
        }
    }

    /// What comes before the table's rows.
    pub fn head(&self) -> String {
        let Report { device, precision, .. } = self;
        let cudnn = self.cudnn_version.map_or("no cuDNN".into(), |version| format!("cuDNN {version}"));
        format!(
            "{precision} on {device}; {cudnn}; measured: a copy {} GB/s, a product {} TFLOP/s\n\n\
             | direction | convolution | in a step | ours, us | cuDNN, us | cuDNN / ours | MB | GFLOP | of the ceiling | difference | |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n",
            cell(self.gb_per_s, 0),
            cell(self.tflop_per_s, 0)
        )
    }

    /// Means by direction, the step's sum, and the worst.
    pub fn summary(&self) -> String {
        let mut text = String::from(
            "\n| direction | compared | geometric mean of cuDNN / ours | ours in a step, ms | cuDNN, ms |\n|---|---|---|---|---|\n",
        );
        for direction in DIRECTIONS.into_iter().map(Some).chain([None]) {
            let rows = || self.rows.iter().filter(|row| direction.is_none_or(|wanted| row.direction == wanted));
            let compared: Vec<(&Row, f64)> = rows().filter_map(|row| Some((row, row.ratio?))).collect();
            let logs: f64 = compared.iter().map(|(_, ratio)| ratio.ln()).sum();
            let mean = (!compared.is_empty()).then(|| (logs / compared.len() as f64).exp());
            let sum = |seconds: fn(&Row) -> Option<f64>| {
                let all = compared.iter().filter_map(|(row, _)| Some(row.count as f64 * seconds(row)?));
                cell(mean.map(|_| 1e3 * all.sum::<f64>()), 3)
            };
            let (ours, theirs) = (sum(|row| row.ours_s), sum(|row| row.cudnn_s));
            let name = direction.unwrap_or("**all**");
            let (count, all) = (compared.len(), rows().count());
            text += &format!("| {name} | {count} of {all} | {} | {ours} | {theirs} |\n", cell(mean, 2));
        }
        let ratio = |row: &&Row| row.ratio.unwrap_or(f64::INFINITY);
        let worst = self.rows.iter().filter(|row| row.ratio.is_some()).min_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        if let Some(row) = worst {
            text += &format!("\nThe worst: {}, {}: {}.\n", row.direction, row.name(), cell(row.ratio, 2));
        }
        let measured = self.rows.len();
        text + &format!("\n{measured} convolutions in {:.1} s, {} are missing.\n", self.seconds, self.missing)
    }
}
