//! Runs that stop and go on, and files that are damaged.

use super::{device, load, settings, write_dataset};
use rarunet_cuda::model::weights::WeightsFile;
use rarunet_cuda::model::{Model, Network};
use rarunet_cuda::train::adl::Adl;
use rarunet_cuda::train::needs::{DataNeeds, check_disk};
use rarunet_cuda::train::{EpochRecord, Observer, Run, RunFolder, Settings, Silent, checkpoint, checkpoints};
use rarunet_cuda::{Error, Result};
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

/// Stops after so many questions whether to.
struct StopAfter(Cell<usize>);

impl Observer for StopAfter {
    fn stop(&self) -> Option<u8> {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        (left == 0).then_some(143)
    }
}

/// Longer than any run here: checkpoints are saved at the end of an epoch and where a run is stopped.
const HOUR: Duration = Duration::from_secs(3600);

/// Begins or goes on with a run in `out`.
fn run(
    settings: &Settings,
    data: &Path,
    out: &Path,
    threads: usize,
    save_every: Duration,
    observer: &dyn Observer,
) -> Result<()> {
    let set = load(settings, data)?;
    let resume = !checkpoints(out).is_empty();
    let folder = if resume { RunFolder::resume(out)? } else { RunFolder::create(out)? };
    let mut run = Run::new(settings, &set, None, || Ok(device(threads)), &folder)?;
    run.save_every(save_every);
    if resume {
        run.resume(false)?;
    }
    run.train(observer).map(drop)
}

/// What a run left, but for the clock.
fn left(out: &Path) -> (Vec<Vec<u8>>, Vec<EpochRecord>) {
    let files = checkpoints(out).into_iter().chain([out.join("best.safetensors")]);
    let log = EpochRecord::read_all(&out.join("log.jsonl")).unwrap();
    (files.map(|path| std::fs::read(path).unwrap()).collect(), log.into_iter().map(super::timeless).collect())
}

/// Stopped wherever a run can be stopped, it goes on to the same bits: also with two networks that pick each other's
/// masks, and on another number of threads.
#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_dataset(&data, 3);
    let settings = Settings {
        adl: Adl::CoTeaching,
        noise_proportion: Some(0.5),
        noise_overlap: Some(0.5),
        epochs: 2,
        size: 16,
        batch: 4,
        ..settings()
    };
    let run = |out: &Path, threads, observer: &dyn Observer| run(&settings, &data, out, threads, HOUR, observer);
    let whole = folder.path().join("whole");
    run(&whole, 1, &Silent).unwrap();
    let expected = left(&whole);
    assert!(expected.1[1].removed_total > 0, "masks are left out: {:?}", expected.1);

    let mut stops = 0;
    for questions in 0.. {
        let out = folder.path().join(format!("stopped{questions}"));
        let mut result = run(&out, 2, &StopAfter(Cell::new(questions)));
        let stopped = result.is_err();
        while let Err(error) = result {
            assert!(matches!(error, Error::Interrupted { exit_code: 143 }), "{error}");
            stops += 1;
            // And again, later.
            result = run(&out, 1, &StopAfter(Cell::new(questions + 9)));
        }
        let found = left(&out);
        assert_eq!(found.1, expected.1, "stopped after {questions} questions");
        // The newest checkpoint and the best weights: which checkpoint is the one before depends on the stops.
        for file in [0, 2] {
            let tensors = |bytes| safetensors::SafeTensors::deserialize(bytes).unwrap();
            for (name, tensor) in tensors(&expected.0[file]).tensors() {
                let same = tensors(&found.0[file]).tensor(&name).is_ok_and(|found| found.data() == tensor.data());
                assert!(same, "{name} in file {file}, stopped after {questions} questions");
            }
            assert!(found.0[file] == expected.0[file], "file {file}, stopped after {questions} questions");
        }
        if !stopped {
            break;
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(stops > 10, "{stops} stops");
}

/// Five runs at one seed, on one, two and four threads: weights, moments, records and log.
#[test]
fn five_runs_are_bit_equal_on_one_two_and_four_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_dataset(&data, 3);
    let run = |name: &str, threads| {
        let out = folder.path().join(name);
        run(&settings(), &data, &out, threads, HOUR, &Silent).unwrap();
        left(&out)
    };
    let expected = run("first", 1);
    for (number, threads) in [1, 2, 2, 4].into_iter().enumerate() {
        assert!(run(&format!("run{number}"), threads) == expected, "{threads} threads");
    }
}

/// The file with one bit of one byte turned must be refused; byte after byte, `step` apart after the first `dense` ones.
fn flip(bytes: &[u8], dense: usize, step: usize, refused: impl Fn(&[u8]) -> bool) {
    let places = (0..dense).chain((dense..bytes.len()).step_by(step)).chain([bytes.len() - 1]);
    let mut flipped = bytes.to_vec();
    for place in places {
        flipped[place] ^= 1 << (place % 8);
        assert!(refused(&flipped), "byte {place} of {} is {:?}", bytes.len(), flipped[place] as char);
        flipped[place] = bytes[place];
    }
    assert!(!refused(bytes));
    for length in [0, 7, 8, bytes.len() / 2, bytes.len() - 1] {
        assert!(refused(&bytes[..length]), "{length} bytes");
    }
    assert!(refused(&[bytes, &[0]].concat()), "a byte more");
}

#[test]
fn a_flipped_byte_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_dataset(&data, 3);
    let settings = Settings { model: "unet".into(), epochs: 1, ..settings() };
    let out = folder.path().join("run");
    run(&settings, &data, &out, 1, HOUR, &Silent).unwrap();

    let path = out.join("best.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut network = Network::new(Model::new("unet", [8; 5]).unwrap(), device(1)).unwrap();
    flip(&bytes, header, 61, |bytes| WeightsFile::new(&path, bytes).is_err());
    WeightsFile::new(&path, &bytes).unwrap().load(&mut network).unwrap();

    // A checkpoint, as `--resume` reads it.
    let newest = checkpoints(&out).remove(0);
    let bytes = std::fs::read(&newest).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    flip(&bytes, header.min(1000), 397, |bytes| {
        std::fs::write(&newest, bytes).unwrap();
        let refused = checkpoint::newest(&out);
        if let Err(error) = &refused {
            let message = error.to_string();
            assert!(message.contains(&newest.display().to_string()) && !message.contains('\n'), "{message}");
        }
        refused.is_err()
    });
}

/// A value that is not a number never becomes the state that a run goes on from.
#[test]
fn a_diverged_run_keeps_its_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_dataset(&data, 3);
    let settings = Settings { learning_rate: 1e30, ..settings() };
    let out = folder.path().join("run");
    let message = run(&settings, &data, &out, 1, Duration::ZERO, &Silent).unwrap_err().to_string();
    assert!(message.contains("lower --learning-rate"), "{message}");
    for path in checkpoints(&out) {
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in tensors.tensors().iter().filter(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F32) {
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            assert!(values.into_iter().all(f32::is_finite), "{name} in {}", path.display());
        }
    }
    assert!(!checkpoints(&out).is_empty());
}

#[test]
fn too_little_memory_or_disk_is_said_with_numbers() {
    let needs = DataNeeds { cases: 3, slices: 900, bytes: 1 << 60, cache_bytes: 0 };
    let message = needs.check().unwrap_err().to_string();
    assert!(message.contains("900 slices") && message.contains("1099511627776 MiB") && message.contains("--size"));
    let message = check_disk(Path::new("absent/run"), 1 << 62).unwrap_err().to_string();
    assert!(message.starts_with("absent/run: ") && message.contains("4398046511104 MiB") && message.contains("free"));
    assert!(check_disk(Path::new("run"), 0).is_ok() && DataNeeds { bytes: 0, ..needs }.check().is_ok());
}
