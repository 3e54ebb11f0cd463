//! Cached slices: the same as those in memory, never stale, made anew when damaged, shared and resumed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rarunet_cuda::data::{Cache, Dataset, Geometry, Labels, SliceSet, metaimage, nifti};
use rarunet_cuda::preprocessing::HounsfieldWindow;
use tempfile::TempDir;

use super::{message, volume};

fn grid() -> Geometry {
    Geometry::axis_aligned([20, 16, 5], [0.8, 0.8, 2.0])
}

fn write_image(folder: &Path, name: &str, value: i16) {
    let image = volume(grid(), |x, y, z| value + (x * 7 + y * 3 + z) as i16);
    nifti::write(&folder.join(format!("imagesTr/{name}_0000.nii.gz")), &image, None).unwrap();
}

fn write_mask(folder: &Path, name: &str, from: usize) {
    let mask = volume(grid(), |x, _, z| u8::from(x > from && z > 1) * 2);
    nifti::write(&folder.join(format!("labelsTr/{name}.nii.gz")), &mask, None).unwrap();
}

/// A data set of the cases a, b, c in `data`; the cache is to be in `cache`.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        write_image(&data, name, 100 * number as i16);
        write_mask(&data, name, 4);
    }
    let json = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 2}, "file_ending": ".nii.gz"}"#;
    std::fs::write(data.join("dataset.json"), json).unwrap();
    folder
}

/// The set by way of the cache, which must be the set in memory, and how many cases were cached and made.
fn load(folder: &TempDir, size: usize, window: HounsfieldWindow, labels: &str) -> rarunet_cuda::Result<[usize; 2]> {
    let dataset = Dataset::open(&folder.path().join("data"))?;
    let (cache, labels): (_, Labels) = (Cache::new(folder.path().join("cache")), labels.parse()?);
    let set = SliceSet::load_cached(&dataset, &dataset.cases, size, window, &labels, &cache, || {})?;
    assert!(set == SliceSet::load(&dataset, &dataset.cases, size, window, &labels, || {}).unwrap());
    Ok(cache.counts())
}

fn counts(folder: &TempDir) -> [usize; 2] {
    load(folder, 16, HounsfieldWindow::default(), "").unwrap()
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder.path().join("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_made_once_is_not_made_again() {
    let folder = folder();
    assert_eq!(counts(&folder), [0, 3]);
    let made = files(&folder);
    assert_eq!(made.len(), 3);
    assert_eq!(counts(&folder), [3, 0]);
    // The bytes count, not when or under which name they were written.
    std::fs::rename(folder.path().join("data"), folder.path().join("elsewhere")).unwrap();
    std::fs::rename(folder.path().join("elsewhere"), folder.path().join("data")).unwrap();
    let image = folder.path().join("data/imagesTr/a_0000.nii.gz");
    std::fs::File::open(&image).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(counts(&folder), [3, 0]);
    assert_eq!(files(&folder), made);
}

#[test]
fn other_settings_make_other_slices() {
    let folder = folder();
    assert_eq!(counts(&folder), [0, 3]);
    let window = HounsfieldWindow::default();
    assert_eq!(load(&folder, 32, window, "").unwrap(), [0, 3]);
    assert_eq!(load(&folder, 16, HounsfieldWindow { low: -100.0, ..window }, "").unwrap(), [0, 3]);
    assert_eq!(load(&folder, 16, window, "2").unwrap(), [0, 3]);
    assert_eq!(counts(&folder), [3, 0]);
    // What dataset.json declares decides what may be read.
    let json = folder.path().join("data/dataset.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replace("\"bone\": 2", "\"bone\": 1")).unwrap();
    assert!(message(load(&folder, 16, window, "")).contains("label 2, which dataset.json does not list"));
}

/// A file that changes in place, to the same size and with its old time, is noticed.
#[test]
fn a_changed_file_is_never_served_stale() {
    let folder = folder();
    let data = folder.path().join("data");
    let plain = folder.path().join("plain");
    for name in ["a", "b"] {
        metaimage::write(&plain.join(format!("{name}.mhd")), &volume(grid(), |x, y, _| (x + y) as i16)).unwrap();
        let mask = volume(grid(), |x, _, _| u8::from(x > 3));
        metaimage::write(&plain.join(format!("{name}_label.mhd")), &mask).unwrap();
    }
    assert_eq!(counts(&folder), [0, 3]);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&plain, &data).unwrap();
    assert_eq!(counts(&folder), [0, 2]);
    for name in ["a.raw", "b_label.raw"] {
        let path = data.join(name);
        let time = path.metadata().unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // Within the window, and across the border of foreground.
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(counts(&folder), [1, 1], "{name}");
    }
}

#[test]
fn a_run_that_broke_off_is_gone_on_with() {
    let folder = folder();
    let image = folder.path().join("data/imagesTr/c_0000.nii.gz");
    let whole = std::fs::read(&image).unwrap();
    std::fs::write(&image, &whole[..whole.len() / 2]).unwrap();
    let window = HounsfieldWindow::default();
    assert!(message(load(&folder, 16, window, "")).contains("c_0000.nii.gz"));
    std::fs::write(&image, whole).unwrap();
    // What a process that was killed leaves behind is no file of the cache.
    let done = files(&folder);
    assert!(done.len() == 2, "{done:?}");
    let begun = folder.path().join("cache/.0123.slices.77.partial");
    std::fs::write(&begun, "rarslice").unwrap();
    assert_eq!(counts(&folder), [2, 1]);
    assert!(begun.exists(), "another run may be at it");
}

#[test]
fn damaged_files_are_made_anew() {
    let folder = folder();
    counts(&folder);
    let path = files(&folder).swap_remove(0);
    let sound = std::fs::read(&path).unwrap();
    let length = sound.len();
    for at in [0, 9, 13, 17, 21, 40, 60, 5000, length / 2, length - 8, length - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(counts(&folder), [2, 1], "byte {at} of {length}");
        assert_eq!(std::fs::read(&path).unwrap(), sound);
    }
    for length in [0, 7, 55, 56, 1000, length - 1] {
        std::fs::write(&path, &sound[..length]).unwrap();
        assert_eq!(counts(&folder), [2, 1], "{length} bytes");
    }
    std::fs::write(&path, [&sound[..], b"x"].concat()).unwrap();
    assert_eq!(counts(&folder), [2, 1]);
    // Another case's file under this name.
    let other = std::fs::read(&files(&folder)[1]).unwrap();
    std::fs::write(&path, other).unwrap();
    assert_eq!(counts(&folder), [2, 1]);
}

#[test]
fn what_nobody_used_for_a_month_is_removed() {
    let folder = folder();
    counts(&folder);
    let cache = folder.path().join("cache");
    let age = |name: &str, days: u64| {
        let path = cache.join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
        path
    };
    let kept = [age("young.slices", 29), age("somebodys.txt", 99)];
    let removed = [age("old.slices", 31), age(".old.slices.5.partial", 31)];
    // What this run uses was used now.
    for path in files(&folder).iter().filter(|path| path.metadata().unwrap().len() > 0) {
        std::fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    assert_eq!(counts(&folder), [3, 0]);
    assert!(kept.iter().all(|path| path.exists()));
    assert!(removed.iter().all(|path| !path.exists()));
    assert_eq!(files(&folder).len(), 5);
}

#[test]
fn a_folder_that_cannot_be_written_is_said() {
    let folder = folder();
    std::fs::write(folder.path().join("cache"), "a file").unwrap();
    let text = message(load(&folder, 16, HounsfieldWindow::default(), ""));
    assert!(text.contains("cache") && text.contains("--cache DIR"), "{text}");
}
