//! How data sets name their folders and files, and which cases that makes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::dataset::Case;
use super::file::ends_with;
use crate::{Error, Result};

/// The layouts that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `dataset.json`, `imagesTr/<case>_0000<ending>`, `labelsTr/<case><ending>`.
    NnUnetRaw,
    /// Medical Segmentation Decathlon: a `dataset.json` that lists each image and its mask.
    Decathlon,
    /// As in the CSI 2014 challenge: `<case>.mhd` beside `<case>_label.mhd`.
    LabelSuffix,
    /// VerSe: `rawdata/<subject>/<case>_ct.nii.gz`, `derivatives/<subject>/<case>_seg-vert_msk.nii.gz`.
    Verse,
}

impl Layout {
    /// The layout's name for a person.
    pub fn name(self) -> &'static str {
        match self {
            Layout::NnUnetRaw => "nnU-Net raw",
            Layout::Decathlon => "Medical Segmentation Decathlon",
            Layout::LabelSuffix => "CSI 2014",
            Layout::Verse => "VerSe",
        }
    }
}

/// Endings of files that can be read, longest first.
pub(crate) const ENDINGS: [&str; 6] = [".nii.gz", ".hdr.gz", ".nii", ".mha", ".mhd", ".hdr"];

/// What a data set's folder holds.
pub(super) struct Listing {
    pub layout: Layout,
    /// In the order of their names.
    pub cases: Vec<Case>,
    /// The labels that dataset.json declares.
    pub declared: Option<BTreeSet<i64>>,
    /// Labels by what they are called.
    pub names: BTreeMap<String, Vec<i64>>,
    /// A line for each thing that is missing or wrong.
    pub problems: Vec<String>,
}

/// Whether `folder` looks like a data set, complete or not.
pub(super) fn recognises(folder: &Path) -> bool {
    folder.join("dataset.json").is_file() || is_verse(folder) || folder.is_dir() && has_label_files(folder)
}

/// The cases of a data set in any layout.
///
/// # Errors
/// If `folder` is not a data set at all.
pub(super) fn survey(folder: &Path) -> Result<Listing> {
    let json = folder.join("dataset.json");
    if json.is_file() {
        return described(folder, &json);
    }
    if is_verse(folder) {
        return verse(folder);
    }
    if has_label_files(folder) {
        return label_suffix(folder);
    }
    std::fs::read_dir(folder).map_err(Error::io(folder))?;
    Err(Error::file(
        folder,
        "is not a data set: it holds no dataset.json with imagesTr and labelsTr, no <case>_label.mhd and no rawdata and derivatives",
    ))
}

/// The parts of dataset.json that matter here.
#[derive(Deserialize)]
struct Description {
    #[serde(alias = "modality")]
    channel_names: Option<BTreeMap<String, Value>>,
    labels: Option<BTreeMap<String, Value>>,
    #[serde(rename = "numTraining")]
    training_count: Option<usize>,
    file_ending: Option<String>,
    training: Option<Vec<Value>>,
}

/// nnU-Net raw and the Decathlon, which both have a dataset.json.
fn described(folder: &Path, json: &Path) -> Result<Listing> {
    let text = std::fs::read_to_string(json).map_err(Error::io(json))?;
    let description: Description = serde_json::from_str(&text)
        .map_err(|error| Error::file(json, format!("is not a data set's description: {error}")))?;
    let mut problems = Vec::new();

    match description.channel_names.as_ref().map(BTreeMap::len) {
        None => problems.push("dataset.json lacks channel_names: {\"channel_names\": {\"0\": \"CT\"}}".to_owned()),
        Some(1) => {}
        Some(n) => problems.push(format!("dataset.json names {n} channels; the network takes one, the CT")),
    }
    let names = description.labels.as_ref().and_then(|labels| label_names(labels, &mut problems));
    if description.labels.is_none() {
        problems.push("dataset.json lacks labels: {\"labels\": {\"background\": 0, \"vertebra\": 1}}".to_owned());
    }
    let ending = description.file_ending.unwrap_or_else(|| ".nii.gz".to_owned());
    if !ENDINGS.contains(&ending.as_str()) {
        let readable = ENDINGS.join(", ");
        problems.push(format!("dataset.json's file_ending \"{ending}\" cannot be read; it can be one of {readable}"));
    }

    // An older nnU-Net's dataset.json lists its files too, without the channel's number that they have.
    let numbered = || {
        listed(&folder.join("imagesTr"), &ending).is_ok_and(|files| files.keys().any(|stem| stem.ends_with("_0000")))
    };
    let (layout, cases) = match &description.training {
        Some(training) if !numbered() => (Layout::Decathlon, decathlon(folder, training, &mut problems)),
        _ => (Layout::NnUnetRaw, nnunet_raw(folder, &ending, &mut problems)?),
    };
    if cases.is_empty() && problems.is_empty() {
        problems.push(format!("imagesTr holds no image that ends in {ending}"));
    }
    if let Some(count) = description.training_count.filter(|&count| count != cases.len() && problems.is_empty()) {
        problems.push(format!("dataset.json says numTraining {count}, but there are {} cases", cases.len()));
    }
    let declared = names.as_ref().map(|names| names.values().flatten().copied().collect());
    Ok(Listing { layout, cases, declared, names: names.unwrap_or_default(), problems })
}

fn nnunet_raw(folder: &Path, ending: &str, problems: &mut Vec<String>) -> Result<Vec<Case>> {
    let images = listed(&folder.join("imagesTr"), ending)?;
    let masks = listed(&folder.join("labelsTr"), ending)?;
    let mut cases = Vec::new();
    for (stem, image) in &images {
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
            Some(mask) => cases.push(Case { name: name.to_owned(), image: image.clone(), mask: mask.clone() }),
            None => problems.push(format!("{} has no mask labelsTr/{name}{ending}", image.display())),
        }
    }
    for (name, mask) in &masks {
        if !images.contains_key(&format!("{name}_0000")) {
            problems.push(format!("{} has no image imagesTr/{name}_0000{ending}", mask.display()));
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

fn decathlon(folder: &Path, training: &[Value], problems: &mut Vec<String>) -> Vec<Case> {
    let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let mut cases = BTreeMap::new();
    for entry in training {
        let path = |key| entry.get(key).and_then(Value::as_str).map(Path::new).filter(|path| inside(path));
        let (Some(image), Some(mask)) = (path("image"), path("label")) else {
            problems.push(format!(
                "dataset.json's training lists {entry}; it should be {{\"image\": \"./imagesTr/a.nii.gz\", \"label\": \"./labelsTr/a.nii.gz\"}}"
            ));
            continue;
        };
        let name = stem(image);
        for (what, path) in [("image", image), ("mask", mask)] {
            if !folder.join(path).is_file() {
                problems.push(format!("the {what} of case {name}, {}, is missing", path.display()));
            }
        }
        // Collected afresh, so that a path has no "./" in it.
        let [image, mask] = [image, mask].map(|path| {
            folder.components().chain(path.components()).filter(|part| *part != Component::CurDir).collect()
        });
        if cases.insert(name.clone(), Case { name: name.clone(), image, mask }).is_some() {
            problems.push(format!("dataset.json lists case {name} twice"));
        }
    }
    cases.into_values().filter(|case| case.image.is_file() && case.mask.is_file()).collect()
}

/// The labels of dataset.json by their names: `{"vertebra": 1}`, `{"spine": [1, 2]}` or the older `{"1": "vertebra"}`.
fn label_names(labels: &BTreeMap<String, Value>, problems: &mut Vec<String>) -> Option<BTreeMap<String, Vec<i64>>> {
    let mut names = BTreeMap::<String, Vec<i64>>::new();
    for (key, value) in labels {
        let whole = |values: &[Value]| values.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
        let named = match value {
            Value::Number(_) => whole(std::slice::from_ref(value)).map(|labels| (key, labels)),
            Value::Array(values) => whole(values).map(|labels| (key, labels)),
            Value::String(name) => key.parse().ok().map(|label| (name, vec![label])),
            _ => None,
        };
        let Some((name, labels)) = named else {
            problems.push(format!("dataset.json's label \"{key}\" is {value}; it should be a whole number"));
            return None;
        };
        names.entry(name.clone()).or_default().extend(labels);
    }
    if !names.values().flatten().any(|&label| label == 0) {
        problems.push("dataset.json's labels lack the background, 0".to_owned());
    }
    Some(names)
}

/// VerSe's labels: C1 to C7, T1 to T12, L1 to L6 from 1 on; T13 came later.
fn verse_names() -> BTreeMap<String, Vec<i64>> {
    let names =
        [("C", 7), ("T", 12), ("L", 6)].into_iter().flat_map(|(region, count)| (1..=count).map(move |n| (region, n)));
    let numbered = names.zip(1..).map(|((region, number), label)| (format!("{region}{number}"), vec![label]));
    numbered.chain([("T13".to_owned(), vec![28])]).collect()
}

/// The end of a mask's name in the CSI 2014 layout.
pub(super) const LABEL_SUFFIX: &str = "_label";

fn has_label_files(folder: &Path) -> bool {
    scans(folder).is_ok_and(|(files, _)| files.keys().any(|stem| stem.ends_with(LABEL_SUFFIX)))
}

fn label_suffix(folder: &Path) -> Result<Listing> {
    let (files, mut problems) = scans(folder)?;
    let mut cases = Vec::new();
    for (stem, path) in &files {
        match stem.strip_suffix(LABEL_SUFFIX) {
            Some(name) if !files.contains_key(name) => {
                problems.push(format!("{} has no image {name}", path.display()));
            }
            Some(_) => {}
            None => match files.get(&format!("{stem}{LABEL_SUFFIX}")) {
                Some(mask) => cases.push(Case { name: stem.clone(), image: path.clone(), mask: mask.clone() }),
                None => problems.push(format!("{} has no mask {stem}{LABEL_SUFFIX}", path.display())),
            },
        }
    }
    Ok(Listing { layout: Layout::LabelSuffix, cases, declared: None, names: BTreeMap::new(), problems })
}

fn is_verse(folder: &Path) -> bool {
    folder.join("rawdata").is_dir() && folder.join("derivatives").is_dir()
}

fn verse(folder: &Path) -> Result<Listing> {
    let (images, mut problems) = scans_below(&folder.join("rawdata"))?;
    let (masks, conflicts) = scans_below(&folder.join("derivatives"))?;
    problems.extend(conflicts);
    let mut cases = BTreeMap::new();
    for (stem, image) in &images {
        let Some(name) = stem.strip_suffix("_ct") else { continue };
        match masks.get(&format!("{name}_seg-vert_msk")) {
            Some(mask) => {
                cases.insert(name, Case { name: name.to_owned(), image: image.clone(), mask: mask.clone() });
            }
            None => problems.push(format!("{} has no mask {name}_seg-vert_msk in derivatives", image.display())),
        }
    }
    for (stem, mask) in &masks {
        if let Some(name) =
            stem.strip_suffix("_seg-vert_msk").filter(|name| !images.contains_key(&format!("{name}_ct")))
        {
            problems.push(format!("{} has no image {name}_ct in rawdata", mask.display()));
        }
    }
    if cases.is_empty() && problems.is_empty() {
        problems.push("rawdata holds no image whose name ends in _ct".to_owned());
    }
    let cases = cases.into_values().collect();
    Ok(Listing { layout: Layout::Verse, cases, declared: None, names: verse_names(), problems })
}

/// A file's name without the ending of a scan.
pub(crate) fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = ENDINGS.iter().chain(&[".dcm"]).find(|ending| ends_with(path, ending));
    name[..name.len() - ending.map_or(0, |ending| ending.len())].to_owned()
}

/// Scans by the stems of their names, and a line for each two that have the same.
pub(crate) type Scans = (BTreeMap<String, PathBuf>, Vec<String>);

/// The scans of a folder; hidden files are left out.
pub(crate) fn scans(folder: &Path) -> Result<Scans> {
    Ok(by_stem(scan_files(folder)?))
}

/// The scans of a folder and of the folders in it.
fn scans_below(folder: &Path) -> Result<Scans> {
    let mut files = scan_files(folder)?;
    for path in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        files.extend(scan_files(&path)?);
    }
    Ok(by_stem(files))
}

fn scan_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_scan = |path: &PathBuf| path.is_file() && ENDINGS.iter().any(|ending| ends_with(path, ending));
    Ok(entries(folder)?.into_iter().filter(is_scan).collect())
}

fn by_stem(files: Vec<PathBuf>) -> Scans {
    let (mut scans, mut conflicts) = (BTreeMap::<String, PathBuf>::new(), Vec::new());
    for path in files {
        match scans.get(&stem(&path)) {
            Some(other) => {
                let (one, other) = (path.display(), other.display());
                conflicts.push(format!("{other} and {one} are both named {}: keep one of them", stem(&path)));
            }
            None => drop(scans.insert(stem(&path), path)),
        }
    }
    (scans, conflicts)
}

/// The files of `folder` whose names end in `ending`, by the rest of their names.
fn listed(folder: &Path, ending: &str) -> Result<BTreeMap<String, PathBuf>> {
    let files = entries(folder)?.into_iter().filter(|path| ends_with(path, ending));
    let without_ending = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name[..name.len() - ending.len()].to_owned()
    };
    Ok(files.map(|path| (without_ending(&path), path)).collect())
}

/// What a folder holds, by name; hidden files, and names that are not Unicode, are left out.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| !name.starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
