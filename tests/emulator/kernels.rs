//! What has to work: kernels give the right results, in any order of threads and blocks.

use cudarc::driver::LaunchConfig;
use half::{bf16, f16};

use super::{Device, in_child, launch, numbers, run_in_child, shape};

/// c[m, n] = a[m, k] b[k, n] in f64.
fn product(a: &[f32], b: &[f32], k: usize, n: usize) -> Vec<f64> {
    let row_times_column = |row: &[f32], column: usize| -> f64 {
        row.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(b[i * n + column])).sum()
    };
    a.chunks(k).flat_map(|row| (0..n).map(move |column| row_times_column(row, column))).collect()
}

/// The largest difference, NaN if there is one.
fn difference(found: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let differences = found.iter().zip(wanted).map(|(found, wanted)| (f64::from(*found) - wanted).abs());
    differences.fold(0.0, |largest, next| if next <= largest { largest } else { next })
}

#[test]
fn vectors_are_added() {
    let Some(device) = Device::open("basics") else { return };
    let (a, b) = (numbers(1000, 1), numbers(1000, 2));
    let (a_device, b_device) = (device.stream.clone_htod(&a).unwrap(), device.stream.clone_htod(&b).unwrap());
    let mut out = device.fresh::<f32>(1000);
    launch!(device, device.function("vector_add"), shape(8, 128), &mut out, &a_device, &b_device, &1000i32).unwrap();
    let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(device.stream.clone_dtoh(&out).unwrap(), wanted);
}

#[test]
fn blocks_reduce_rows() {
    let Some(device) = Device::open("basics") else { return };
    let (rows, n) = (5, 1234);
    let x = numbers(rows * n, 3);
    let x_device = device.stream.clone_htod(&x).unwrap();
    let mut results = Vec::new();
    for threads in [32, 96, 256, 1024] {
        let (mut sums, mut maxima) = (device.fresh::<f32>(rows), device.fresh::<f32>(rows));
        let function = device.function("row_sum_and_max");
        launch!(device, function, shape(5, threads), &mut sums, &mut maxima, &x_device, &(n as i32)).unwrap();
        let sums = device.stream.clone_dtoh(&sums).unwrap();
        let wanted: Vec<f64> = x.chunks(n).map(|row| row.iter().map(|x| f64::from(*x)).sum()).collect();
        assert!(difference(&sums, &wanted) < 1e-4, "{threads} threads: {sums:?}, not {wanted:?}");
        let largest: Vec<f32> = x.chunks(n).map(|row| row.iter().copied().fold(f32::MIN, f32::max)).collect();
        assert_eq!(device.stream.clone_dtoh(&maxima).unwrap(), largest);
        results.push(sums);
    }
    println!("sums {:?}", results.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()); // compared by the orders' test
}

#[test]
fn warp_operations_do_as_cuda_says() {
    let Some(device) = Device::open("basics") else { return };
    let mut out = device.fresh::<i32>(6 * 64);
    launch!(device, device.function("warp_operations"), shape(1, 64), &mut out).unwrap();
    let out = device.stream.clone_dtoh(&out).unwrap();
    for thread in 0..64 {
        let lane = thread as i32 % 32;
        let halves = match lane {
            0..16 => lane ^ 1,
            31 => 31,
            _ => lane + 1,
        };
        let down = if lane % 8 + 3 < 8 { lane + 3 } else { lane };
        let up = if lane >= 3 { lane - 3 } else { lane };
        let ballot = (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1u32 << lane).sum::<u32>() as i32;
        let wanted = [(lane ^ 5) * 10, up, down, lane ^ 16, ballot, halves];
        let found: Vec<i32> = (0..6).map(|row| out[row * 64 + thread]).collect();
        assert_eq!(found, wanted, "thread {thread}");
    }
}

#[test]
fn atomics_of_all_blocks_add_up() {
    let Some(device) = Device::open("basics") else { return };
    let mut bins = device.stream.alloc_zeros::<u32>(8).unwrap();
    launch!(device, device.function("count_in_bins"), shape(40, 64), &mut bins, &100_003i32).unwrap();
    let wanted: Vec<u32> = (0..8).map(|bin| (100_003u32 - bin).div_ceil(8)).collect();
    assert_eq!(device.stream.clone_dtoh(&bins).unwrap(), wanted);
}

#[test]
fn every_thread_has_its_coordinates() {
    let Some(device) = Device::open("basics") else { return };
    let (grid, block) = ((3, 4, 2), (5, 3, 7));
    let count = 3 * 4 * 2 * 5 * 3 * 7;
    let mut out = device.fresh::<i32>(count);
    let shape = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: 0 };
    launch!(device, device.function("thread_coordinates"), shape, &mut out).unwrap();
    assert_eq!(device.stream.clone_dtoh(&out).unwrap(), (0..count as i32).collect::<Vec<_>>());
}

#[test]
fn memory_starts_as_nan() {
    let Some(device) = Device::open("basics") else { return };
    let fresh = device.fresh::<f32>(77);
    assert!(device.stream.clone_dtoh(&fresh).unwrap().iter().all(|x| x.is_nan()));
    let mut out = device.fresh::<f32>(20);
    let shape = LaunchConfig { shared_mem_bytes: 4, ..shape(10, 32) };
    launch!(device, device.function("fresh_shared_memory"), shape, &mut out).unwrap();
    assert_eq!(device.stream.clone_dtoh(&out).unwrap(), [1000.0, 1.0].repeat(10));
}

#[test]
fn plain_matrix_products() {
    let Some(device) = Device::open("basics") else { return };
    let n = 256;
    let (a, b) = (numbers(n * n, 4), numbers(n * n, 5));
    let wanted = product(&a, &b, n, n);
    let (a, b) = (device.stream.clone_htod(&a).unwrap(), device.stream.clone_htod(&b).unwrap());
    let square = |blocks: u32| LaunchConfig { grid_dim: (blocks, blocks, 1), ..shape(1, 256) };
    let tiled = LaunchConfig { block_dim: (16, 16, 1), ..square(16) };
    for (name, shape) in [("matrix_product_tiled", tiled), ("matrix_product_in_registers", square(2))] {
        let mut c = device.fresh::<f32>(n * n);
        launch!(device, device.function(name), shape, &mut c, &a, &b, &(n as i32)).unwrap();
        let error = difference(&device.stream.clone_dtoh(&c).unwrap(), &wanted);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

/// 2 buffers of 64 x 40 and 32 x 72 elements of 2 bytes.
const PRODUCT_SHARED_BYTES: u32 = 2 * (64 * 40 + 32 * 72) * 2;

#[test]
fn tensor_core_matrix_products() {
    let Some(device) = Device::open("basics") else { return };
    let (m, k, n) = (128, 96, 192);
    let (a, b) = (numbers(m * k, 6), numbers(k * n, 7));
    let shape = LaunchConfig { grid_dim: (3, 2, 1), shared_mem_bytes: PRODUCT_SHARED_BYTES, ..shape(1, 128) };

    let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
    let back = |x: &[f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (a16, b16) = (halves(&a), halves(&b));
    let (a_device, b_device) = (device.stream.clone_htod(&a16).unwrap(), device.stream.clone_htod(&b16).unwrap());
    let mut c = device.fresh::<f32>(m * n);
    let function = device.function("matrix_product_f16");
    launch!(device, function, shape, &mut c, &a_device, &b_device, &(n as i32), &(k as i32)).unwrap();
    let error = difference(&device.stream.clone_dtoh(&c).unwrap(), &product(&back(&a16), &back(&b16), k, n));
    assert!(error < 1e-5, "fp16: {error}");

    let bfloats = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let back = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (a16, b16) = (bfloats(&a), bfloats(&b));
    let (a_device, b_device) = (device.stream.clone_htod(&a16).unwrap(), device.stream.clone_htod(&b16).unwrap());
    let mut c = device.fresh::<f32>(m * n);
    let function = device.function("matrix_product_bf16");
    launch!(device, function, shape, &mut c, &a_device, &b_device, &(n as i32), &(k as i32)).unwrap();
    let error = difference(&device.stream.clone_dtoh(&c).unwrap(), &product(&back(&a16), &back(&b16), k, n));
    assert!(error < 1e-5, "bf16: {error}");
}

/// fp32 with the last 13 bits of the mantissa cut off or rounded away, ties away from zero.
fn tf32(x: f32, rounded: bool) -> f32 {
    f32::from_bits((x.to_bits() + if rounded { 0x1000 } else { 0 }) & !0x1FFF)
}

#[test]
fn single_tiles() {
    let Some(device) = Device::open("basics") else { return };
    let (a, b) = (numbers(16 * 8, 8), numbers(8 * 8, 9));
    let (a_device, b_device) = (device.stream.clone_htod(&a).unwrap(), device.stream.clone_htod(&b).unwrap());
    for rounded in [false, true] {
        let mut c = device.fresh::<f32>(16 * 8);
        let flag = i32::from(rounded);
        launch!(device, device.function("one_tile_tf32"), shape(1, 32), &mut c, &a_device, &b_device, &flag).unwrap();
        let cut = |x: &[f32]| x.iter().map(|x| tf32(*x, rounded)).collect::<Vec<_>>();
        let error = difference(&device.stream.clone_dtoh(&c).unwrap(), &product(&cut(&a), &cut(&b), 8, 8));
        assert!(error < 1e-6, "tf32, rounded {rounded}: {error}");
    }
    let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
    let transposed: Vec<f32> = (0..64).map(|i| b[i % 8 * 8 + i / 8]).collect();
    let a_device = device.stream.clone_htod(&halves(&a)).unwrap();
    let b_device = device.stream.clone_htod(&halves(&transposed)).unwrap();
    let mut c = device.fresh::<f32>(16 * 8);
    launch!(device, device.function("one_tile_f16_k8"), shape(1, 32), &mut c, &a_device, &b_device).unwrap();
    let back = |x: &[f32]| halves(x).iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let error = difference(&device.stream.clone_dtoh(&c).unwrap(), &product(&back(&a), &back(&b), 8, 8));
    assert!(error < 1e-6, "fp16: {error}");
}

#[test]
fn conversions_round_as_the_half_crate_does() {
    let Some(device) = Device::open("basics") else { return };
    let mut x = vec![0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e30, -1e30, f32::INFINITY, 6e-8, 5.9e-8, 2.9e-8, 3e-8];
    x.extend([6.1e-5, 6.09e-5, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, f32::MIN_POSITIVE, 1e-40]);
    x.extend(numbers(5000, 10).iter().map(|x| x * 2f32.powi((x * 100.0) as i32)));
    let n = x.len();
    let x_device = device.stream.clone_htod(&x).unwrap();
    let (mut halves, mut bfloats) = (device.fresh::<f16>(n), device.fresh::<bf16>(n));
    let mut back = device.fresh::<f32>(2 * n);
    let function = device.function("convert_16bit");
    launch!(device, function, shape(40, 128), &mut halves, &mut bfloats, &mut back, &x_device, &(n as i32)).unwrap();
    let halves = device.stream.clone_dtoh(&halves).unwrap();
    let bfloats = device.stream.clone_dtoh(&bfloats).unwrap();
    let back = device.stream.clone_dtoh(&back).unwrap();
    for i in 0..n {
        assert_eq!(halves[i].to_bits(), f16::from_f32(x[i]).to_bits(), "fp16 of {}", x[i]);
        assert_eq!(bfloats[i].to_bits(), bf16::from_f32(x[i]).to_bits(), "bf16 of {}", x[i]);
        assert_eq!(back[i], halves[i].to_f32());
        assert_eq!(back[n + i], bfloats[i].to_f32());
    }
}

#[test]
fn asynchronous_copies_can_write_zeros() {
    let Some(device) = Device::open("basics") else { return };
    let x: Vec<f32> = (1..=300).map(|i| i as f32).collect();
    let x_device = device.stream.clone_htod(&x).unwrap();
    let mut out = device.fresh::<f32>(300);
    launch!(device, device.function("shift_with_zeros"), shape(3, 128), &mut out, &x_device, &300i32).unwrap();
    let wanted: Vec<f32> = (0..300).map(|i| i as f32).collect();
    assert_eq!(device.stream.clone_dtoh(&out).unwrap(), wanted);
}

/// Runs all tests of this file in other orders of threads and blocks and with other numbers of cores. The sums' bits
/// are the same each time.
#[test]
fn all_of_it_holds_in_any_order() {
    if in_child() || Device::open("basics").is_none() {
        return;
    }
    let run = |order, threads| {
        let variables = [("RARUNET_EMULATOR_ORDER", order), ("RARUNET_EMULATOR_THREADS", threads)];
        let (passed, printed) = run_in_child("emulator::kernels::", &variables);
        assert!(passed, "order {order}, {threads} threads:\n{printed}");
        let sums = printed.lines().find_map(|line| line.find("sums [").map(|start| line[start..].to_string()));
        sums.expect("blocks_reduce_rows prints its sums")
    };
    let wanted = run("forward", "1");
    for (order, threads) in
        [("reversed", "1"), ("shuffled", "3"), ("shuffled:1", "1"), ("shuffled:2", "2"), ("forward", "7")]
    {
        assert_eq!(run(order, threads), wanted, "order {order}, {threads} threads");
    }
}
