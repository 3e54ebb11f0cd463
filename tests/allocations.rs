//! A step allocates nothing. In a binary of its own, since the allocator is the whole program's.

use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::{Device, StepId};
use rarunet_cuda::model::{Mode, Model};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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
    let mut device = CpuDevice::<f32>::new().unwrap();
    for mode in [Mode::Train, Mode::Evaluate] {
        let step = load(&mut device, mode);
        // The first runs grow each thread's scratch memory to what it needs.
        (0..5).for_each(|_| device.run(step).unwrap());
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..RUNS).for_each(|_| device.run(step).unwrap());
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        // Handing a step to the threads goes through rayon's queue, which takes a new block every 63 entries.
        assert!(allocations <= RUNS / 20, "{mode:?}: {RUNS} runs made {allocations} allocations");
    }
}
