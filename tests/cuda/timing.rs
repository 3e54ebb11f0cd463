//! Launches timed by the device's own clock.

use rarunet_cuda::device::cuda::PlannedLaunch;
use rarunet_cuda::device::{LaunchTime, Precision};
use rarunet_cuda::floors::Floors;
use rarunet_cuda::model::{Mode, Model, Network};

/// Every launch of a step is timed, in each state of it: never run, captured, replayed.
#[test]
fn cuda_times_every_launch() {
    let modes = [(Precision::F32, Mode::Evaluate), (Precision::Tf32, Mode::Train), (Precision::Bf16, Mode::Train)];
    for (precision, mode) in modes {
        let Some(device) = super::open_in(precision) else { return };
        let model = Model::new("rar-unet", [8; 5]).unwrap();
        let floors = Floors::new(&model, mode, 1, 16, precision).unwrap();
        assert_eq!(floors.kernels.keys().any(|name| name.ends_with("_tf32")), precision == Precision::Tf32);
        let transposed = floors.kernels.get("transpose_weight_forward_bf16");
        assert!(transposed.is_none_or(|cost| cost.operations == 0), "it only prepares");
        assert_eq!(transposed.is_some(), precision == Precision::Bf16);
        let mut network = Network::new(model, Box::new(device)).unwrap();
        network.initialise(1).unwrap();
        let step = network.load(mode, 1, [16, 16]).unwrap();
        network.write_batch(&step, &[0.5; 256], &[1.0; 256], &[1.0]).unwrap();
        for _ in 0..2 {
            let times = network.time_launches(&step, 3).unwrap().expect("the device launches");
            let launches = || times.iter().map(|time| &time.launch);
            assert_eq!(times.len(), floors.launches);
            assert_eq!(launches().map(|launch| launch.bytes).sum::<u64>(), floors.bytes);
            assert_eq!(launches().map(|launch| launch.operations).sum::<u64>(), floors.operations);
            assert!(floors.kernels.keys().all(|kernel| launches().any(|launch| launch.kernel == *kernel)));
            let seconds: f64 = times.iter().map(|time| time.seconds).sum();
            assert!(times.iter().all(|time| time.seconds >= 0.0) && seconds > 0.0, "{seconds} s");
            let LaunchTime { launch: PlannedLaunch { op, grid, .. }, .. } = times.last().unwrap();
            assert!(!op.is_empty() && grid.blocks.iter().chain(&grid.threads).all(|&count| count > 0));
        }
        let all: Vec<usize> = (0..network.plan(&step).nodes.len()).collect();
        assert!(network.time_nodes(&step, &all, 2).unwrap() > 0.0);
    }
}
