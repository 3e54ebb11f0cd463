//! Data sets on disk: which scans and masks there are, and whether they can be trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde_json::Value;

use super::file::ends_with;
use super::source::{Header, voxel_text, whole};
use super::{Volume, open};
use crate::{Error, Result};

/// Which labels of a mask are foreground. Written "26-33,41"; without a list, any label above 0.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Labels(Vec<RangeInclusive<i32>>);

impl Labels {
    /// Whether `label` is foreground.
    pub fn contains(&self, label: i64) -> bool {
        match self.0.is_empty() {
            true => label > 0,
            false => self.0.iter().any(|range| (i64::from(*range.start())..=i64::from(*range.end())).contains(&label)),
        }
    }
}

impl FromStr for Labels {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Labels::default());
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = first.trim().parse::<i32>().ok()?..=last.trim().parse::<i32>().ok()?;
            (*range.start() > 0 && !range.is_empty()).then_some(range)
        };
        let ranges = text.split(',').map(|part| {
            range(part).ok_or_else(|| {
                Error::Invalid(format!(
                    "labels \"{text}\": \"{}\" is not a label or a range of labels above 0, such as 26-33,41",
                    part.trim()
                ))
            })
        });
        ranges.collect::<Result<Vec<_>>>().map(Labels)
    }
}

impl TryFrom<String> for Labels {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Labels> for String {
    fn from(labels: Labels) -> String {
        labels.to_string()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            match range.start() == range.end() {
                true => write!(out, "{separator}{}", range.start())?,
                false => write!(out, "{separator}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

/// How a data set's folders and files are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `dataset.json`, `imagesTr/<case>_0000<ending>`, `labelsTr/<case><ending>`.
    NnUnetRaw,
}

impl Layout {
    /// The layout's name for a person.
    pub fn name(self) -> &'static str {
        match self {
            Layout::NnUnetRaw => "nnU-Net raw",
        }
    }
}

/// A patient's scan and its mask, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    pub image: PathBuf,
    pub mask: PathBuf,
}

/// A data set: its cases in the order of their names.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub folder: PathBuf,
    pub layout: Layout,
    pub cases: Vec<Case>,
    /// The labels that dataset.json declares; nothing where a layout declares none.
    declared: Option<BTreeSet<i64>>,
}

/// A case in memory, both volumes on the grid as stored.
pub struct LoadedCase {
    /// Hounsfield units.
    pub image: Volume<f32>,
    /// 1 where foreground, else 0.
    pub mask: Volume<u8>,
    /// Of the mask's file.
    pub mask_header: Header,
    /// Every label of the mask's file and its number of voxels.
    pub labels: BTreeMap<i64, u64>,
}

impl Dataset {
    /// The data set in `folder`, complete.
    ///
    /// # Errors
    /// The first thing that is missing or wrong, and how many more there are.
    pub fn open(folder: &Path) -> Result<Self> {
        let (dataset, problems) = Self::survey(folder)?;
        match problems.first() {
            None => Ok(dataset),
            Some(first) if problems.len() == 1 => Err(Error::file(folder, first)),
            Some(first) => {
                Err(Error::file(folder, format!("{first} (and {} more: inspect lists them)", problems.len() - 1)))
            }
        }
    }

    /// The data set in `folder` as far as it can be used, and a line for each thing that is missing
    /// or wrong in its listing. The voxels are not looked at.
    ///
    /// # Errors
    /// If `folder` is not a data set at all.
    pub fn survey(folder: &Path) -> Result<(Self, Vec<String>)> {
        let json = folder.join("dataset.json");
        if !json.is_file() {
            std::fs::read_dir(folder).map_err(Error::io(folder))?;
            return Err(Error::file(folder, "is not a data set: it holds no dataset.json with imagesTr and labelsTr"));
        }
        nnunet_raw(folder, &json)
    }

    /// Reads a case and checks it: image and mask on one grid, no voxel of the image undefined,
    /// no label that dataset.json does not declare.
    ///
    /// # Errors
    /// The first of these that does not hold, with the file, the voxel and the numbers.
    pub fn load(&self, case: &Case, foreground: &Labels) -> Result<LoadedCase> {
        let mut mask_source = open(&case.mask)?;
        let image_source = open(&case.image)?;
        if let Some(difference) = image_source.geometry().difference(mask_source.geometry(), ["image", "mask"]) {
            return Err(Error::file(&case.mask, format!("does not fit its image: {difference}")));
        }
        let geometry = mask_source.geometry().clone();
        let shape = geometry.shape;
        let mut voxels = Vec::new();
        let mut labels = BTreeMap::<i64, u64>::new();
        mask_source.for_each_block(|first, block| {
            for (offset, &value) in block.iter().enumerate() {
                let place = || voxel_text(shape, first + offset);
                let label = whole(value).ok_or_else(|| {
                    Error::file(&case.mask, format!("voxel {} is {value}, but a mask holds whole numbers", place()))
                })?;
                if self.declared.as_ref().is_some_and(|declared| !declared.contains(&label)) {
                    let declared = self.declared.iter().flatten().map(i64::to_string).collect::<Vec<_>>().join(", ");
                    return Err(Error::file(
                        &case.mask,
                        format!("voxel {} has label {label}, which dataset.json does not list ({declared})", place()),
                    ));
                }
                *labels.entry(label).or_default() += 1;
                voxels.push(u8::from(foreground.contains(label)));
            }
            Ok(())
        })?;
        let mask = Volume::new(geometry, voxels)?;
        let (image, _) = image_source.into_image()?;
        check_finite(&case.image, &image)?;
        Ok(LoadedCase { image, mask, mask_header: mask_source.header().clone(), labels })
    }

    /// The cases but those named, which must exist.
    ///
    /// # Errors
    /// If a name is no case of the data set, or nothing would be left.
    pub fn cases_without(&self, names: &[String]) -> Result<Vec<Case>> {
        if let Some(unknown) = names.iter().find(|name| self.cases.iter().all(|case| case.name != **name)) {
            let known = self.cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::file(&self.folder, format!("has no case \"{unknown}\" to leave out; it has {known}")));
        }
        let rest: Vec<Case> = self.cases.iter().filter(|case| !names.contains(&case.name)).cloned().collect();
        match rest.is_empty() {
            false => Ok(rest),
            true => Err(Error::file(&self.folder, "has no case left to train on: name fewer test cases")),
        }
    }
}

/// Says where an image's first undefined voxel is, if it has one.
///
/// # Errors
/// If any voxel is NaN or infinite.
pub fn check_finite(path: &Path, image: &Volume<f32>) -> Result<()> {
    match image.voxels.iter().position(|voxel| !voxel.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::file(
            path,
            format!(
                "voxel {} is {}: replace undefined voxels by air (-1024)",
                voxel_text(image.geometry.shape, index),
                image.voxels[index]
            ),
        )),
    }
}

/// The parts of dataset.json that matter here.
#[derive(Deserialize)]
struct DatasetJson {
    #[serde(alias = "modality")]
    channel_names: Option<BTreeMap<String, Value>>,
    labels: Option<BTreeMap<String, Value>>,
    #[serde(rename = "numTraining")]
    training_count: Option<usize>,
    file_ending: Option<String>,
}

/// Endings of files that can be read.
const ENDINGS: [&str; 5] = [".nii.gz", ".nii", ".mha", ".mhd", ".hdr"];

fn nnunet_raw(folder: &Path, json: &Path) -> Result<(Dataset, Vec<String>)> {
    let text = std::fs::read_to_string(json).map_err(Error::io(json))?;
    let description: DatasetJson = serde_json::from_str(&text)
        .map_err(|error| Error::file(json, format!("is not a data set's description: {error}")))?;
    let mut problems = Vec::new();

    match description.channel_names.as_ref().map(BTreeMap::len) {
        None => problems.push("dataset.json lacks channel_names: {\"channel_names\": {\"0\": \"CT\"}}".to_owned()),
        Some(1) => {}
        Some(n) => problems.push(format!("dataset.json names {n} channels; the network takes one, the CT")),
    }
    let declared = description.labels.as_ref().and_then(|labels| declared_labels(labels, &mut problems));
    if description.labels.is_none() {
        problems.push("dataset.json lacks labels: {\"labels\": {\"background\": 0, \"vertebra\": 1}}".to_owned());
    }
    let ending = description.file_ending.unwrap_or_else(|| ".nii.gz".to_owned());
    if !ENDINGS.contains(&ending.as_str()) {
        problems.push(format!(
            "dataset.json's file_ending \"{ending}\" cannot be read; it can be one of {}",
            ENDINGS.join(", ")
        ));
    }

    let images = listed(&folder.join("imagesTr"), &ending)?;
    let masks = listed(&folder.join("labelsTr"), &ending)?;
    let mut cases = Vec::new();
    for (stem, image) in images {
        let Some(name) = stem.strip_suffix("_0000") else {
            problems.push(match stem.rsplit_once('_') {
                Some((_, channel)) if channel.len() == 4 && channel.bytes().all(|c| c.is_ascii_digit()) => {
                    format!("{} is channel {channel}; the network takes one, _0000", image.display())
                }
                _ => format!("{} lacks the channel's number: name it {stem}_0000{ending}", image.display()),
            });
            continue;
        };
        match masks.get(name) {
            Some(mask) => cases.push(Case { name: name.to_owned(), image, mask: mask.clone() }),
            None => problems.push(format!("{} has no mask labelsTr/{name}{ending}", image.display())),
        }
    }
    for (name, mask) in &masks {
        if !folder.join("imagesTr").join(format!("{name}_0000{ending}")).exists() {
            problems.push(format!("{} has no image imagesTr/{name}_0000{ending}", mask.display()));
        }
    }
    if cases.is_empty() && problems.is_empty() {
        problems.push(format!("imagesTr holds no image that ends in {ending}"));
    }
    if let Some(count) = description.training_count.filter(|&count| count != cases.len() && problems.is_empty()) {
        problems.push(format!("dataset.json says numTraining {count}, but there are {} cases", cases.len()));
    }
    Ok((Dataset { folder: folder.to_path_buf(), layout: Layout::NnUnetRaw, cases, declared }, problems))
}

/// The label values of dataset.json: `{"vertebra": 1}`, `{"spine": [1, 2]}` or the older `{"1": "vertebra"}`.
fn declared_labels(labels: &BTreeMap<String, Value>, problems: &mut Vec<String>) -> Option<BTreeSet<i64>> {
    let mut declared = BTreeSet::new();
    for (name, value) in labels {
        match value {
            Value::Number(number) if number.as_i64().is_some() => declared.extend(number.as_i64()),
            Value::Array(values) if values.iter().all(|value| value.as_i64().is_some()) => {
                declared.extend(values.iter().filter_map(Value::as_i64));
            }
            Value::String(_) if name.parse::<i64>().is_ok() => declared.extend(name.parse::<i64>()),
            _ => {
                problems.push(format!("dataset.json's label \"{name}\" is {value}; it should be a whole number"));
                return None;
            }
        }
    }
    if !declared.contains(&0) {
        problems.push("dataset.json's labels lack the background, 0".to_owned());
    }
    Some(declared)
}

/// The files of `folder` whose names end in `ending`, by the rest of their names; hidden ones are left out.
fn listed(folder: &Path, ending: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with('.') && ends_with(&path, ending) {
            files.insert(name[..name.len() - ending.len()].to_owned(), path);
        }
    }
    Ok(files)
}
