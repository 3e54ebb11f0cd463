//! The rows of each table, with the paper's numbers.

use crate::train::adl::{Adl, Noise};

/// What a row trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub model: &'static str,
    /// The noise that the training masks are given.
    pub noise: Option<Noise>,
    pub adl: Adl,
    /// What the paper measured, where it has the row.
    pub paper: Option<Paper>,
}

/// A row of the paper's: on CT of one patient, at 256 x 256.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paper {
    pub iou: f64,
    pub recall: f64,
}

/// What can be reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// Ablations of the network: seven rows
    Table4,
    /// Ablations of adaptive denoising learning: eighteen rows
    Table5,
    /// All strategies against noisy masks, side by side, on U-Net and RAR-U-Net
    Strategies,
}

const fn noise(proportion: f64, overlap: f64) -> Noise {
    Noise { proportion, overlap }
}

/// Table 4: model, IoU, recall.
const TABLE_4: [(&str, f64, f64); 7] = [
    ("unet", 0.7182, 0.8832),
    ("residual-unet", 0.7873, 0.8540),
    ("path-unet", 0.9119, 0.9549),
    ("attention-unet", 0.8927, 0.9406),
    ("residual-attention-unet", 0.9070, 0.9481),
    ("residual-path-unet", 0.9126, 0.9535),
    ("rar-unet", 0.9193, 0.9605),
];

/// Table 5: noise, model, IoU and recall without ADL, and with it.
const TABLE_5: [(Noise, &str, [f64; 2], [f64; 2]); 9] = [
    (noise(0.75, 0.68), "unet", [0.6445, 0.7303], [0.6742, 0.8072]),
    (noise(0.75, 0.68), "residual-unet", [0.7732, 0.9097], [0.8138, 0.9462]),
    (noise(0.75, 0.68), "attention-unet", [0.7809, 0.8823], [0.8087, 0.9142]),
    (noise(0.50, 0.77), "unet", [0.7523, 0.8420], [0.8522, 0.9295]),
    (noise(0.50, 0.77), "attention-unet", [0.8464, 0.9201], [0.8561, 0.9283]),
    (noise(0.25, 0.85), "residual-unet", [0.8615, 0.9051], [0.8868, 0.9433]),
    (noise(0.25, 0.85), "dense-unet", [0.8443, 0.9378], [0.8864, 0.9424]),
    (noise(0.25, 0.55), "unet", [0.8024, 0.8698], [0.8304, 0.9176]),
    (noise(0.25, 0.55), "residual-unet", [0.8230, 0.8956], [0.8495, 0.9126]),
];

impl Table {
    /// The rows, in the paper's order.
    pub fn rows(self) -> Vec<Row> {
        match self {
            Table::Table4 => TABLE_4
                .iter()
                .map(|&(model, iou, recall)| Row {
                    model,
                    noise: None,
                    adl: Adl::Off,
                    paper: Some(Paper { iou, recall }),
                })
                .collect(),
            Table::Table5 => TABLE_5
                .iter()
                .flat_map(|&(noise, model, off, on)| {
                    [(Adl::Off, off), (Adl::Paper, on)].map(|(adl, [iou, recall])| Row {
                        model,
                        noise: Some(noise),
                        adl,
                        paper: Some(Paper { iou, recall }),
                    })
                })
                .collect(),
            Table::Strategies => ["unet", "rar-unet"]
                .into_iter()
                .flat_map(|model| [noise(0.50, 0.77), noise(0.75, 0.68)].map(|noise| (model, noise)))
                .flat_map(|(model, noise)| Adl::COMPARED.map(|adl| Row { model, noise: Some(noise), adl, paper: None }))
                .collect(),
        }
    }

    /// The name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Table::Table4 => "table4",
            Table::Table5 => "table5",
            Table::Strategies => "strategies",
        }
    }
}

impl Row {
    /// A name for the row's folder.
    pub fn folder(&self) -> String {
        match self.noise {
            None => self.model.to_owned(),
            Some(Noise { proportion, overlap }) => {
                format!("{}-{:.0}-{overlap:.2}-{}", self.model, proportion * 100.0, self.adl.name())
            }
        }
    }

    /// Whether `other` differs in what is done about the noise alone.
    pub fn is_beside(&self, other: &Row) -> bool {
        self.model == other.model && self.noise == other.noise
    }
}
