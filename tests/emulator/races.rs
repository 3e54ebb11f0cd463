//! Races: a wrong kernel gives another result in another order of threads, which the tests can choose.

use super::{Device, in_child, launch, run_in_child, shape};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

/// Runs this file's test `name` with an order of threads; the line that it printed after "result: ".
fn result_in_order(name: &str, order: &str) -> String {
    let (passed, printed) = run_in_child(&format!("emulator::races::{name}"), &[("RARUNET_EMULATOR_ORDER", order)]);
    assert!(passed, "{printed}");
    let result = printed.lines().find_map(|line| line.split("result: ").nth(1).map(String::from));
    result.unwrap_or_else(|| panic!("no result:\n{printed}"))
}

/// In the child: whether `kernel`'s output is `wanted`.
fn print_whether(kernel: &str, threads: usize, wanted: impl Fn(usize) -> f32) {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<f32>(threads);
    launch!(device, device.function(kernel), shape(1, threads as u32), &mut out).unwrap();
    let out = device.stream.clone_dtoh(&out).unwrap();
    let right = out.iter().enumerate().all(|(i, x)| *x == wanted(i));
    let nan = out.iter().any(|x| x.is_nan());
    println!(
        "result: {}",
        if right {
            "right"
        } else if nan {
            "NaN"
        } else {
            "wrong"
        }
    );
}

#[test]
fn a_missing_barrier_shows_in_another_order() {
    if in_child() {
        return print_whether("missing_barrier", 256, |i| i.saturating_sub(1) as f32);
    }
    if Device::open("faults").is_none() {
        return;
    }
    let name = "a_missing_barrier_shows_in_another_order";
    assert_eq!(result_in_order(name, "forward"), "right"); // which is why one order is not enough
    assert_eq!(result_in_order(name, "reversed"), "NaN");
    assert_eq!(result_in_order(name, "shuffled:5"), "NaN");
}

#[test]
fn a_missing_second_barrier_shows() {
    if in_child() {
        return print_whether("missing_second_barrier", 256, |_| 1.0);
    }
    if Device::open("faults").is_none() {
        return;
    }
    for order in ["forward", "reversed", "shuffled:5"] {
        assert_eq!(result_in_order("a_missing_second_barrier_shows", order), "wrong", "{order}");
    }
}

#[test]
fn blocks_run_in_the_chosen_order() {
    if in_child() {
        let Some(device) = Device::open("faults") else { return };
        let mut out = device.stream.alloc_zeros::<i32>(1).unwrap();
        launch!(device, device.function("order_of_blocks"), shape(4, 1), &mut out).unwrap();
        return println!("result: {}", device.stream.clone_dtoh(&out).unwrap()[0]);
    }
    if Device::open("faults").is_none() {
        return;
    }
    let run = |order| {
        let variables = [("RARUNET_EMULATOR_ORDER", order), ("RARUNET_EMULATOR_THREADS", "1")];
        let (_, printed) = run_in_child("emulator::races::blocks_run_in_the_chosen_order", &variables);
        printed.lines().find_map(|line| line.split("result: ").nth(1)?.parse::<i32>().ok()).expect("a number")
    };
    let result = |order: [i32; 4]| order.iter().fold(0, |sum, block| (sum + block) * 2);
    assert_eq!(run("forward"), result([0, 1, 2, 3]));
    assert_eq!(run("reversed"), result([3, 2, 1, 0]));
    let shuffled: std::collections::BTreeSet<i32> =
        ["shuffled:1", "shuffled:2", "shuffled:3", "shuffled:4"].map(run).into();
    assert!(shuffled.len() > 1, "{shuffled:?}");
}

#[test]
fn a_wait_for_the_wrong_copy_group_gives_nan() {
    let Some(device) = Device::open("faults") else { return };
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let x_device = device.stream.clone_htod(&x).unwrap();
    let mut results = Vec::new();
    for groups_left in [0, 1] {
        let mut out = device.fresh::<f32>(32);
        launch!(device, device.function("wrong_wait_group"), shape(1, 32), &mut out, &x_device, &groups_left).unwrap();
        results.push(device.stream.clone_dtoh(&out).unwrap());
    }
    assert_eq!(results[0], x[32..]);
    assert!(results[1].iter().all(|x| x.is_nan()), "{:?}", results[1]);
}

/// Two branches of a graph write to the same place, and nothing says which of them first.
#[test]
fn a_missing_dependency_of_a_graph_shows_in_another_order() {
    let name = "a_missing_dependency_of_a_graph_shows_in_another_order";
    let Some(device) = Device::open("faults") else { return };
    if !in_child() {
        assert_eq!(result_in_order(name, "forward"), "1");
        assert_eq!(result_in_order(name, "reversed"), "0");
        return;
    }
    let side = device.context.new_stream().unwrap();
    let (ones, mut x) = (device.stream.clone_htod(&[1.0f32; 4]).unwrap(), device.fresh::<f32>(4));
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    side.join(&device.stream).unwrap();
    side.memset_zeros(&mut x).unwrap();
    device.stream.memcpy_dtod(&ones, &mut x).unwrap();
    device.stream.join(&side).unwrap();
    let graph = device.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().expect("work was captured");
    graph.launch().unwrap();
    println!("result: {}", device.stream.clone_dtoh(&x).unwrap()[0]);
}
