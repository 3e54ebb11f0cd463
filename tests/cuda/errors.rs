//! What the CUDA device refuses, and what it says.

use super::open;
use crate::emulator::{in_child, run_in_child};
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::Graph;
use rarunet_cuda::ops::add::Add;
use rarunet_cuda::tensor::Shape;

/// A graph of a sum of so many elements in so many tensors.
fn load(device: &mut CudaDevice, count: usize, tensors: usize) -> String {
    let mut graph = Graph::new();
    let inputs: Vec<_> = (0..tensors).map(|_| graph.input(Shape::flat(count))).collect();
    let sum = inputs[1..].iter().fold(inputs[0], |sum, &x| graph.apply(Add::default(), &[sum, x]).unwrap()[0]);
    match device.load(graph, &[sum]) {
        Ok(_) => panic!("{tensors} tensors of {count} elements have no room anywhere"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn cuda_says_what_has_no_room() {
    let Some(mut device) = open() else { return };
    let message = load(&mut device, 1 << 30, 1000);
    assert!(message.contains("that were planned") && message.contains("lower --batch"), "{message}");
    // What is there goes on working.
    let mut graph = Graph::new();
    let x = graph.input(Shape::flat(2));
    let sum = graph.apply(Add::default(), &[x, x]).unwrap()[0];
    let step = device.load(graph, &[sum]).unwrap();
    device.write(step, x, &[1.0, 2.0]).unwrap();
    device.run(step).unwrap();
    let mut found = [0.0; 2];
    device.read(step, sum, &mut found).unwrap();
    assert_eq!(found, [2.0, 4.0]);
}

#[test]
fn cuda_counts_in_32_bits() {
    let Some(mut device) = open() else { return };
    let message = load(&mut device, 1 << 31, 2);
    assert!(message.contains("add: 2147483648 elements in one tensor"), "{message}");
}

/// What the machine's own driver says.
fn answer() -> String {
    let found = CudaDevice::count().and_then(|count| {
        let described = (0..count).map(|ordinal| CudaDevice::describe(ordinal).map(|gpu| gpu.to_string()));
        let beyond = CudaDevice::describe(count).unwrap_err();
        Ok((described.collect::<rarunet_cuda::Result<Vec<_>>>()?, beyond.to_string()))
    });
    match found {
        Ok((gpus, beyond)) => format!("{} GPUs: {}; {beyond}", gpus.len(), gpus.join("; ")),
        Err(error) => format!("{error}; {}", CudaDevice::open(0, None).err().expect("nothing can be opened")),
    }
}

/// In a process of its own: the other tests' processes know the emulator's driver alone.
#[test]
fn cuda_without_a_gpu_says_so() {
    if in_child() {
        println!("answer: {}", answer());
        return;
    }
    let (passed, printed) = run_in_child("cuda::errors::cuda_without_a_gpu_says_so", &[]);
    let answer = printed.lines().find_map(|line| line.split_once("answer: ")).map(|(_, answer)| answer);
    let answer = answer.filter(|_| passed).unwrap_or_else(|| panic!("{printed}"));
    let known = ["no CUDA driver", "finds no GPU", "does not start", "there is no such GPU"];
    assert!(known.iter().any(|text| answer.contains(text)) && answer.contains("device cuda:"), "{answer}");
}

/// sm_75 has tensor cores for fp16 alone.
#[test]
fn cuda_says_what_turing_has_not() {
    if in_child() {
        for precision in [Precision::Tf32, Precision::Bf16] {
            println!("answer: {}", CudaDevice::emulator(Some(precision)).err().expect("it is refused"));
        }
        assert_eq!(CudaDevice::emulator(None).unwrap().precision(), Precision::Fp16);
        return;
    }
    if std::env::var_os("RARUNET_TEST_DEVICE").is_some() || open().is_none() {
        return;
    }
    let variables = [("RARUNET_EMULATOR_COMPUTE_CAPABILITY", "7.5")];
    let (passed, printed) = run_in_child("cuda::errors::cuda_says_what_turing_has_not", &variables);
    for precision in ["tf32", "bf16"] {
        let line = format!("emulator: no {precision} at compute capability 7.5: use --precision fp16 or f32");
        assert!(passed && printed.contains(&line), "{line}:\n{printed}");
    }
}

#[test]
fn cuda_a_process_uses_gpus_or_the_emulator() {
    if std::env::var_os("RARUNET_TEST_DEVICE").is_some() || open().is_none() {
        return;
    }
    let message = CudaDevice::open(0, None).err().expect("the emulator is no GPU").to_string();
    assert!(message.contains("device cuda:0: this process uses the emulator"), "{message}");
    let name = open().unwrap().name();
    assert!(name.starts_with("emulator, CUDA emulator, compute capability "), "{name}");
}
