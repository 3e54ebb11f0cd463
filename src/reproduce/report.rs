//! What came out, beside the paper's numbers: as Markdown, CSV and JSON.

use super::{Paper, Row, Table, Trial};
use crate::train::adl::Adl;
use serde::Serialize;
use std::fmt::Write;

/// A table's rows with the trials that are done.
#[derive(Debug, Serialize)]
pub struct Report {
    table: String,
    rows: Vec<RowReport>,
    differences: Vec<Difference>,
}

/// A row: means over its seeds, on the test cases, with the weights that validated best.
#[derive(Debug, Serialize)]
struct RowReport {
    model: String,
    noise_proportion: Option<f64>,
    noise_overlap: Option<f64>,
    adl: String,
    paper_iou: Option<f64>,
    paper_recall: Option<f64>,
    iou: Option<Estimate>,
    recall: Option<Estimate>,
    /// Of the last epoch's weights.
    last_iou: Option<Estimate>,
    trials: Vec<Trial>,
}

/// What a strategy adds to the IoU of the same model and noise without one, seed by seed.
#[derive(Debug, Serialize)]
struct Difference {
    row: String,
    paper: Option<f64>,
    iou: Estimate,
    last_iou: Estimate,
}

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Estimate {
    mean: f64,
    /// The standard deviation over the seeds; nothing of one.
    deviation: Option<f64>,
    /// Half the width of the mean's 95% interval, by Student's t; nothing of one seed.
    half_interval: Option<f64>,
}

/// The 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom.
const STUDENT: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

impl Estimate {
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.len() > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (count - 1.0)).sqrt()
        });
        let quantile = STUDENT.get(values.len().wrapping_sub(2)).copied().unwrap_or(1.96);
        Some(Estimate { mean, deviation, half_interval: deviation.map(|d| quantile * d / count.sqrt()) })
    }

    fn spread(&self) -> String {
        match self.deviation {
            Some(deviation) => format!("{:.4} ± {deviation:.4}", self.mean),
            None => format!("{:.4}", self.mean),
        }
    }

    fn interval(&self) -> String {
        match self.half_interval {
            Some(half) => format!("{:+.4} [{:+.4}, {:+.4}]", self.mean, self.mean - half, self.mean + half),
            None => format!("{:+.4}", self.mean),
        }
    }
}

impl Report {
    /// The report of `table`'s rows, each with its trials so far.
    pub fn new(table: Table, rows: &[(Row, Vec<Trial>)]) -> Self {
        let differences = rows.iter().filter(|(row, _)| row.adl != Adl::Off).filter_map(|(row, trials)| {
            let (off, without) = rows.iter().find(|(other, _)| other.adl == Adl::Off && other.is_beside(row))?;
            Difference::of((row, trials), (off, without))
        });
        Report {
            table: table.name().into(),
            differences: differences.collect(),
            rows: rows.iter().map(|(row, trials)| RowReport::of(row, trials)).collect(),
        }
    }

    /// Both tables, and what the columns mean.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.table);
        text.push_str(
            "| model | noise | ADL | IoU (paper) | IoU | IoU, last epoch | recall (paper) | recall | seeds |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let line = [
                row.model.clone(),
                row.noise(),
                row.adl.clone(),
                number(row.paper_iou),
                spread(row.iou),
                spread(row.last_iou),
                number(row.paper_recall),
                spread(row.recall),
                row.trials.len().to_string(),
            ];
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        text.push_str(
            "\nIoU and recall are of the test cases' masks, which are clean, over all pixels: mean ± standard deviation \
             over seeds, with the weights that validated best (on clean masks) and those of the last epoch. Noise is the \
             share of training masks that have it, and their mean Dice overlap with the truth.\n",
        );
        if !self.differences.is_empty() {
            text.push_str(
                "\n| what the strategy adds to the IoU | paper | here | here, last epoch |\n|---|---|---|---|\n",
            );
            for difference in &self.differences {
                let paper = difference.paper.map_or(String::new(), |paper| format!("{paper:+.4}"));
                let (best, last) = (difference.iou.interval(), difference.last_iou.interval());
                let _ = writeln!(text, "| {} | {paper} | {best} | {last} |", difference.row);
            }
            text.push_str("\nDifferences are taken seed by seed; in brackets the 95% interval of their mean.\n");
        }
        self.detections(&mut text);
        text
    }

    /// How well noisy masks are told from clean ones as training goes.
    fn detections(&self, text: &mut String) {
        let rows: Vec<(&RowReport, Vec<String>)> =
            self.rows.iter().filter_map(|row| Some((row, row.auroc()?))).collect();
        if rows.is_empty() {
            return;
        }
        text.push_str("\n| AUROC of the detection after | 10% | 25% | 50% | 75% | 100% of the epochs |\n|---|---|---|---|---|---|\n");
        for (row, auroc) in rows {
            let _ = writeln!(text, "| {}, {}, {} | {} |", row.model, row.noise(), row.adl, auroc.join(" | "));
        }
        text.push_str("\nThe chance that a noisy mask ranks above a clean one, mean over seeds; 0.5 is guessing.\n");
    }

    /// A line for each trial.
    pub fn csv(&self) -> String {
        let mut text = "model,noise_proportion,noise_overlap,adl,seed,iou,dice,recall,last_iou,last_dice,last_recall,\
                        seconds,paper_iou,paper_recall\n"
            .to_owned();
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for row in &self.rows {
            for trial in &row.trials {
                let (best, last) = (trial.best, trial.last);
                let _ = writeln!(
                    text,
                    "{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
                    row.model,
                    cell(row.noise_proportion),
                    cell(row.noise_overlap),
                    row.adl,
                    trial.seed,
                    best.iou,
                    best.dice,
                    best.recall,
                    last.iou,
                    last.dice,
                    last.recall,
                    trial.seconds,
                    cell(row.paper_iou),
                    cell(row.paper_recall),
                );
            }
        }
        text
    }
}

impl RowReport {
    fn of(row: &Row, trials: &[Trial]) -> Self {
        let estimate = |score: fn(&Trial) -> f64| Estimate::of(&trials.iter().map(score).collect::<Vec<f64>>());
        RowReport {
            model: row.model.into(),
            noise_proportion: row.noise.map(|noise| noise.proportion),
            noise_overlap: row.noise.map(|noise| noise.overlap),
            adl: row.adl.name().into(),
            paper_iou: row.paper.map(|paper| paper.iou),
            paper_recall: row.paper.map(|paper| paper.recall),
            iou: estimate(|trial| trial.best.iou),
            recall: estimate(|trial| trial.best.recall),
            last_iou: estimate(|trial| trial.last.iou),
            trials: trials.to_vec(),
        }
    }

    /// The mean area under the curve after parts of the epochs.
    fn auroc(&self) -> Option<Vec<String>> {
        let parts = [0.1, 0.25, 0.5, 0.75, 1.0].map(|part| {
            let at = |trial: &Trial| {
                let epoch = (part * trial.auroc.len() as f64).round().max(1.0) as usize;
                trial.auroc.get(epoch - 1).copied().flatten()
            };
            let values: Vec<f64> = self.trials.iter().filter_map(at).collect();
            Estimate::of(&values).map(|estimate| format!("{:.2}", estimate.mean))
        });
        parts.into_iter().collect()
    }

    fn noise(&self) -> String {
        match (self.noise_proportion, self.noise_overlap) {
            (Some(proportion), Some(overlap)) => format!("{:.0}% at {overlap:.2}", proportion * 100.0),
            _ => "none".into(),
        }
    }
}

impl Difference {
    fn of((row, trials): (&Row, &[Trial]), (off, without): (&Row, &[Trial])) -> Option<Self> {
        let differences = |score: fn(&Trial) -> f64| -> Vec<f64> {
            let pairs = trials.iter().filter_map(|trial| {
                let other = without.iter().find(|other| other.seed == trial.seed)?;
                Some(score(trial) - score(other))
            });
            pairs.collect()
        };
        let paper = |paper: Option<Paper>| paper.map(|paper| paper.iou);
        Some(Difference {
            row: row.folder(),
            paper: paper(row.paper).zip(paper(off.paper)).map(|(with, without)| with - without),
            iou: Estimate::of(&differences(|trial| trial.best.iou))?,
            last_iou: Estimate::of(&differences(|trial| trial.last.iou))?,
        })
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

fn spread(estimate: Option<Estimate>) -> String {
    estimate.map_or("-".into(), |estimate| estimate.spread())
}
