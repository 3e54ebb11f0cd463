//! What is allocated: by a step nothing, by slices in a cache next to nothing, by a scan twice its voxels at most.
//! In a binary of its own, since the allocator is the whole program's.

mod malformed;

use rarunet_cuda::data::{Cache, Dataset, Geometry, Labels, Loader, SliceSet, Volume, nifti};
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::{Device, StepId};
use rarunet_cuda::model::{Mode, Model};
use rarunet_cuda::preprocessing::HounsfieldWindow;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Bytes that are allocated now, and the most since [`measured`] began.
static BYTES: AtomicUsize = AtomicUsize::new(0);
static MOST_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Tests count one after the other.
static COUNTS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    COUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What `work` returns, the most bytes it had allocated at one time, and those that are left.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = BYTES.load(Ordering::Relaxed);
    MOST_BYTES.store(before, Ordering::Relaxed);
    let result = work();
    let [most, left] = [&MOST_BYTES, &BYTES].map(|bytes| bytes.load(Ordering::Relaxed).saturating_sub(before));
    (result, most, left)
}

// SAFETY: the system's allocator, with counters beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        let bytes = BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST_BYTES.fetch_max(bytes, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn load(device: &mut CpuDevice<f32>, mode: Mode) -> StepId {
    let model = Model::new("rar-unet", [8, 16, 16, 24, 24]).unwrap();
    for region in rarunet_cuda::graph::Region::ALL {
        device.allocate_state(region, 1 << 20).unwrap();
    }
    let step = model.graph(mode, 2, [48, 32]).unwrap();
    device.load(step.graph, &[step.prediction, step.loss, step.sample_losses]).unwrap()
}

#[test]
fn a_step_allocates_nothing() {
    const RUNS: usize = 40;
    let _alone = alone();
    let mut device = CpuDevice::<f32>::new().unwrap();
    for mode in [Mode::Train, Mode::Evaluate] {
        let step = load(&mut device, mode);
        // The first runs grow each thread's scratch memory to what it needs; a thread that got little to do grows it later.
        let allocations = (0..5).map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            (0..RUNS).for_each(|_| device.run(step).unwrap());
            ALLOCATIONS.load(Ordering::Relaxed) - before
        });
        let allocations = allocations.min().unwrap();
        // Handing a step to the threads goes through rayon's queue, which takes a new block every 63 entries.
        assert!(allocations <= RUNS / 20, "{mode:?}: {RUNS} runs made {allocations} allocations");
    }
}

/// A CSI 2014 data set of `count` different scans of `shape`.
fn write_scans(folder: &Path, shape: [usize; 3], count: usize) {
    let grid = Geometry::axis_aligned(shape, [1.0; 3]);
    for case in 0..count {
        let image = (0..grid.voxel_count()).map(|i| ((i * 31 + case) % 900) as i16).collect();
        let mask = (0..grid.voxel_count()).map(|i| u8::from(i % 64 < 20 + case % 20)).collect();
        let write = |name: String| folder.join(name);
        nifti::write(&write(format!("c{case}.nii")), &Volume::new(grid.clone(), image).unwrap(), None).unwrap();
        nifti::write(&write(format!("c{case}_label.nii")), &Volume::new(grid.clone(), mask).unwrap(), None).unwrap();
    }
}

#[test]
fn training_memory_does_not_grow_with_the_data_set() {
    const SIZE: usize = 64;
    const SLICES: usize = 8;
    let _alone = alone();
    let load = |cases: usize| {
        let folder = tempfile::tempdir().unwrap();
        write_scans(&folder.path().join("data"), [SIZE, SIZE, SLICES], cases);
        let dataset = Dataset::open(&folder.path().join("data")).unwrap();
        let cache = Cache::new(folder.path().join("cache"));
        let (window, labels) = (HounsfieldWindow::default(), Labels::default());
        let epoch = || {
            let load = || SliceSet::load_cached(&dataset, &dataset.cases, SIZE, window, &labels, &cache, || {});
            let set = load().unwrap();
            let area = 4 * SIZE * SIZE;
            let (mut image, mut target, mut weight) = (vec![0.0; area], vec![0.0; area], vec![0.0; 4]);
            let mut loader = Loader::new(&set, (0..set.slices.len()).collect(), 4, 1, true);
            loader.begin_epoch(1, &vec![1.0; set.slices.len()]);
            let mut sum = 0.0;
            for batch in 0..loader.batches() {
                loader.fill(batch, &mut image, &mut target, &mut weight);
                sum += target.iter().sum::<f32>();
            }
            assert!(sum > 0.0 && set.slices.len() == cases * SLICES);
            set
        };
        // Made, and found.
        let made = measured(epoch);
        let found = measured(epoch);
        assert!(made.0 == found.0);
        [made.1, made.2, found.1, found.2]
    };
    load(2);
    let (few, many) = (load(5), load(40));
    for (few, many) in few.into_iter().zip(many) {
        // A slice has 20 KiB of pixels; what remains in memory says where they are.
        let growth = many.saturating_sub(few) / (35 * SLICES);
        assert!(growth < 2048, "{growth} bytes more for each slice more: {few} with 5 cases, {many} with 40");
    }
}

#[test]
fn a_case_is_in_memory_at_most_twice_while_it_is_loaded() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let shape = [256, 256, 96];
    write_scans(&folder.path().join("data"), shape, 1);
    let dataset = Dataset::open(&folder.path().join("data")).unwrap();
    let cache = Cache::new(folder.path().join("cache"));
    let (window, labels) = (HounsfieldWindow::default(), Labels::default());
    let load = || SliceSet::load_cached(&dataset, &dataset.cases, 64, window, &labels, &cache, || {}).unwrap();
    let (_, most, _) = measured(load);
    let volume = shape.iter().product::<usize>() * (size_of::<f32>() + size_of::<u8>());
    assert!(most < 2 * volume, "{most} bytes for a case of {volume}");
}
