//! Data sets on disk: which scans and masks there are, and whether they can be trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::labels::{Labels, listed};
use super::layout::{Layout, survey};
use super::source::{Header, Source, not_whole, voxel_text, whole};
use super::{Geometry, Volume, open};
use crate::suggestion::did_you_mean;
use crate::{Error, Result};

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
    /// What labels are called: in dataset.json, or by VerSe.
    names: BTreeMap<String, Vec<i64>>,
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
        let listing = survey(folder)?;
        let dataset = Dataset {
            folder: folder.to_path_buf(),
            layout: listing.layout,
            cases: listing.cases,
            declared: listing.declared,
            names: listing.names,
        };
        Ok((dataset, listing.problems))
    }

    /// Opens the image and the mask of a case, which must be on one grid. The voxels are not looked at.
    ///
    /// # Errors
    /// If one cannot be opened, or they do not fit.
    pub fn open_case(&self, case: &Case) -> Result<(Source, Source)> {
        let mask = open(&case.mask)?;
        let image = open(&case.image)?;
        match mismatch(case, image.geometry(), mask.geometry()) {
            None => Ok((image, mask)),
            Some(error) => Err(error),
        }
    }

    /// What decides, besides the files themselves, how a case is read.
    pub(super) fn meaning(&self) -> String {
        format!("{:?} {:?}", self.layout, self.declared)
    }

    /// Reads a case and checks it: image and mask on one grid, no voxel of the image undefined,
    /// no label that dataset.json does not declare.
    ///
    /// # Errors
    /// The first of these that does not hold, with the file, the voxel and the numbers.
    pub fn load(&self, case: &Case, foreground: &Labels) -> Result<LoadedCase> {
        let foreground = foreground.in_mask(&case.mask);
        let (image_source, mut mask_source) = self.open_case(case)?;
        let geometry = mask_source.geometry().clone();
        let check = MaskCheck::new(self, case, geometry.shape);
        let mut voxels = Vec::new();
        let mut labels = BTreeMap::<i64, u64>::new();
        mask_source.for_each_run(|run, value| {
            let label = whole(value).ok_or_else(|| check.not_whole(run.start, value))?;
            if !check.is_declared(label) {
                return Err(check.undeclared(run.start, label));
            }
            *labels.entry(label).or_default() += run.len() as u64;
            voxels.resize(run.end, u8::from(foreground.contains(label)));
            Ok(())
        })?;
        let mask = Volume::new(geometry, voxels)?;
        let (image, _) = image_source.into_image()?;
        check_finite(&case.image, &image)?;
        Ok(LoadedCase { image, mask, mask_header: mask_source.header().clone(), labels })
    }

    /// The labels that the masks of `cases` hold, as far as they can be read.
    pub(super) fn labels(&self, cases: &[Case]) -> BTreeSet<i64> {
        let mut labels = BTreeSet::new();
        for mut mask in cases.iter().filter_map(|case| open(&case.mask).ok()) {
            // A mask that breaks off is none that this is asked about.
            let _ = mask.for_each_run(|_, value| {
                labels.extend(whole(value));
                Ok(())
            });
        }
        labels
    }

    /// The labels of a list like `26-33,41` or `L3,L4`: numbers, ranges, and the names that the data set has for labels.
    /// Without a list, any label above 0.
    ///
    /// # Errors
    /// If a part is none of these, or stands for none of the labels that dataset.json declares, if there is one; the
    /// message suggests what may be meant.
    pub fn foreground(&self, list: &str) -> Result<Labels> {
        let parts = list.split(',').map(|part| {
            let part = part.trim();
            let named = self.names.iter().find(|(name, _)| name.eq_ignore_ascii_case(part));
            let numbers = match named {
                Some((_, labels)) => labels.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
                None if part.starts_with(char::is_alphabetic) && !self.names.is_empty() => {
                    return Err(self.no_label(part));
                }
                None => part.to_owned(),
            };
            let labels: Labels = numbers.parse()?;
            let known = |declared: &BTreeSet<i64>| declared.iter().any(|&label| labels.contains(label));
            if self.declared.as_ref().is_none_or(known) { Ok(numbers) } else { Err(self.no_label(part)) }
        });
        parts.collect::<Result<Vec<_>>>()?.join(",").parse()
    }

    /// The error that the data set has no label that is called or numbered so.
    fn no_label(&self, label: &str) -> Error {
        let foreground = || self.names.iter().filter(|(_, labels)| **labels != [0]);
        let numbers: Vec<String> = foreground().flat_map(|(_, labels)| labels).map(i64::to_string).collect();
        let names = foreground().map(|(name, _)| name.as_str());
        let meant = did_you_mean(label, numbers.iter().map(String::as_str).chain(names));
        let numbered = |labels: &[i64]| listed(labels.iter().copied());
        let known: Vec<String> = foreground().map(|(name, labels)| format!("{} ({name})", numbered(labels))).collect();
        let message = format!("--labels {label}: it has no such label{meant} there are {}", known.join(", "));
        Error::file(&self.folder, message)
    }

    /// The cases but those named, which must exist.
    ///
    /// # Errors
    /// If a name is no case of the data set, or nothing would be left.
    pub fn cases_without(&self, names: &[String]) -> Result<Vec<Case>> {
        if let Some(unknown) = names.iter().find(|name| self.cases.iter().all(|case| case.name != **name)) {
            let known: Vec<&str> = self.cases.iter().map(|case| case.name.as_str()).collect();
            let meant = did_you_mean(unknown, known.iter().copied());
            let known = known.join(", ");
            let message = format!("--test-cases {unknown}: it has no case \"{unknown}\"{meant} there are {known}");
            return Err(Error::file(&self.folder, message));
        }
        let rest: Vec<Case> = self.cases.iter().filter(|case| !names.contains(&case.name)).cloned().collect();
        match rest.is_empty() {
            false => Ok(rest),
            true => Err(Error::file(&self.folder, "has no case left to train on: name fewer test cases")),
        }
    }
}

/// What a voxel of a mask may be.
pub(super) struct MaskCheck<'a> {
    path: &'a Path,
    shape: [usize; 3],
    declared: Option<&'a BTreeSet<i64>>,
}

impl<'a> MaskCheck<'a> {
    pub fn new(dataset: &'a Dataset, case: &'a Case, shape: [usize; 3]) -> Self {
        MaskCheck { path: &case.mask, shape, declared: dataset.declared.as_ref() }
    }

    pub fn is_declared(&self, label: i64) -> bool {
        self.declared.is_none_or(|declared| declared.contains(&label))
    }

    /// Voxel `index` is no whole number.
    pub fn not_whole(&self, index: usize, value: f64) -> Error {
        not_whole(self.path, self.shape, index, value)
    }

    /// Voxel `index` has a label that is not declared.
    pub fn undeclared(&self, index: usize, label: i64) -> Error {
        let place = voxel_text(self.shape, index);
        let declared = self.declared.into_iter().flatten().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("voxel {place} has label {label}, which dataset.json does not list ({declared})");
        Error::file(self.path, message)
    }
}

/// The error if a case's image and mask are not on one grid.
pub(super) fn mismatch(case: &Case, image: &Geometry, mask: &Geometry) -> Option<Error> {
    let difference = image.difference(mask, ["image", "mask"])?;
    Some(Error::file(&case.mask, format!("does not fit its image: {difference}")))
}

/// Says where an image's first undefined voxel is, if it has one.
///
/// # Errors
/// If any voxel is NaN or infinite.
pub fn check_finite(path: &Path, image: &Volume<f32>) -> Result<()> {
    match image.voxels.iter().position(|voxel| !voxel.is_finite()) {
        None => Ok(()),
        Some(index) => Err(undefined_voxel(path, image.geometry.shape, index, image.voxels[index].into())),
    }
}

/// Voxel `index` of an image is undefined.
pub(super) fn undefined_voxel(path: &Path, shape: [usize; 3], index: usize, value: f64) -> Error {
    let place = voxel_text(shape, index);
    Error::file(path, format!("voxel {place} is {value}: replace undefined voxels by air (-1024)"))
}
