//! A CT of the paper's largest size on its way to the network: read, resampled and cached, beside gzip's
//! decompression alone; and read again from the cache.
//!
//! `cargo bench --bench reading`; the scan is made anew each time, which takes longest.

use flate2::read::MultiGzDecoder;
use rarunet_cuda::data::{Cache, Dataset, Geometry, Labels, SliceSet, Volume, nifti};
use rarunet_cuda::preprocessing::HounsfieldWindow;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

const SHAPE: [usize; 3] = [512, 512, 600];
const SPACING: [f64; 3] = [0.7, 0.7, 1.0];
const SIZE: usize = 256;
const TIMES: usize = 3;

/// A body with a spine in air, with the noise of a scanner (17 HU), which decides how well it compresses.
fn scan() -> (Volume<i16>, Volume<u8>) {
    let [columns, rows, slices] = SHAPE;
    let (mut image, mut mask) = (Vec::new(), Vec::new());
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 48).count_ones() as i16 * 8 - 64 + (state >> 33) as i16 % 8
    };
    for z in 0..slices {
        for y in 0..rows {
            for x in 0..columns {
                let (x, y) = (x as f64 - 256.0, y as f64 - 256.0);
                let body = (x / 220.0).powi(2) + (y / 160.0).powi(2) < 1.0;
                let bone = (x / 34.0).powi(2) + ((y - 40.0) / 26.0).powi(2) < 0.8 + 0.2 * (z as f64 / 5.0).sin();
                image.push(if body { 40 + 300 * i16::from(bone) } else { -1000 } + noise());
                mask.push(u8::from(bone));
            }
        }
    }
    let grid = Geometry::axis_aligned(SHAPE, SPACING);
    (Volume::new(grid.clone(), image).expect("a value a voxel"), Volume::new(grid, mask).expect("a value a voxel"))
}

fn inflate(path: &Path) -> u64 {
    let file = File::open(path).expect("the scan was just written");
    let mut inflated = MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file));
    std::io::copy(&mut inflated, &mut std::io::sink()).expect("it is sound")
}

/// The median seconds of some runs; `prepare` is not timed.
fn seconds(prepare: impl Fn(), work: impl Fn()) -> f64 {
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            prepare();
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[TIMES / 2]
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder for the scan");
    let (image, mask) = scan();
    let names = ["case1.nii.gz", "case1_label.nii.gz"].map(|name| folder.path().join("data").join(name));
    nifti::write(&names[0], &image, None).expect("room for the scan");
    nifti::write(&names[1], &mask, None).expect("room for the mask");
    drop((image, mask));
    let dataset = Dataset::open(&folder.path().join("data")).expect("a data set");
    let cached = folder.path().join("cache");
    let load = || {
        let (window, labels) = (HounsfieldWindow::default(), Labels::default());
        let cache = Cache::new(&cached);
        SliceSet::load_cached(&dataset, &dataset.cases, SIZE, window, &labels, &cache, || {}).expect("it loads");
    };
    let bytes = names[0].metadata().expect("it is there").len();
    let both = || inflate(&names[0]) + inflate(&names[1]);
    let inflated = both();
    let alone = seconds(|| {}, || assert_eq!(both(), inflated));
    let _ = std::fs::remove_dir_all(&cached);
    let whole = seconds(|| drop(std::fs::remove_dir_all(&cached)), load);
    let again = seconds(|| {}, load);
    println!("scan                       {} MB, {} MB with its mask when inflated", bytes >> 20, inflated >> 20);
    println!("decompression alone        {alone:.2} s");
    println!("read, resampled and cached {whole:.2} s, {:.2} times as long", whole / alone);
    println!("found in the cache         {again:.2} s");
}
