//! Faults in kernels: each makes the launch fail with the code that a GPU would give and a message that names the kernel,
//! the block and the thread.

use cudarc::driver::{DriverError, LaunchConfig};

use super::{Device, launch, shape};

/// That `result` is the error `code` and its message has all of `parts`.
fn assert_fails(result: Result<(), DriverError>, code: &str, parts: &[&str]) {
    let message = result.expect_err("the fault was not found").to_string();
    for part in [code].iter().chain(parts) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_write_just_past_the_end_is_found_when_the_launch_ends() {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<f32>(100);
    let result = launch!(device, device.function("write_at"), shape(1, 32), &mut out, &100i64);
    assert_fails(
        result,
        "ILLEGAL_ADDRESS",
        &["kernel write_at", "0 bytes past the end of the allocation of 400 bytes"],
    );
    let result = launch!(device, device.function("write_at"), shape(1, 32), &mut out, &-1i64);
    assert_fails(result, "ILLEGAL_ADDRESS", &["kernel write_at", "4 bytes before the allocation of 400 bytes"]);
    launch!(device, device.function("write_at"), shape(1, 32), &mut out, &99i64).unwrap();
}

#[test]
fn an_access_far_outside_names_the_thread() {
    let Some(device) = Device::open("faults") else { return };
    let (mut out, x) = (device.fresh::<f32>(64), device.fresh::<f32>(64)); // 256 bytes: no guard bytes behind them
    let result = launch!(device, device.function("write_at"), shape(1, 32), &mut out, &64i64);
    let end = "0 bytes past the end of the nearest allocation of 256 bytes";
    assert_fails(result, "ILLEGAL_ADDRESS", &["kernel write_at", "block (0,0,0)", "thread (5,0,0)", end]);
    let result = launch!(device, device.function("read_at"), shape(1, 32), &mut out, &x, &1000i64);
    // the line is there where binutils are
    assert_fails(result, "ILLEGAL_ADDRESS", &["kernel read_at", "thread (7,0,0)", "illegal address"]);
    launch!(device, device.function("read_at"), shape(1, 32), &mut out, &x, &63i64).unwrap();
}

#[test]
fn a_read_just_past_the_end_gives_nan() {
    let Some(device) = Device::open("faults") else { return };
    let x = device.stream.clone_htod(&[1.0f32; 10]).unwrap();
    let mut out = device.fresh::<f32>(1);
    launch!(device, device.function("read_at"), shape(1, 32), &mut out, &x, &10i64).unwrap();
    assert!(device.stream.clone_dtoh(&out).unwrap()[0].is_nan());
}

#[test]
fn misaligned_vector_accesses_are_found() {
    let Some(device) = Device::open("faults") else { return };
    let (mut out, x) = (device.fresh::<f32>(4), device.fresh::<f32>(8));
    let result = launch!(device, device.function("misaligned_load"), shape(1, 32), &mut out, &x);
    assert_fails(result, "MISALIGNED_ADDRESS", &["thread (0,0,0)", "kernels/common.cuh:", "no multiple of 16 bytes"]);
    let result = launch!(device, device.function("misaligned_copy"), shape(1, 32), &x);
    assert_fails(result, "MISALIGNED_ADDRESS", &["cp.async of 16 bytes"]);
}

#[test]
fn an_index_outside_a_shared_array_is_found() {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<f32>(1);
    let result = launch!(device, device.function("shared_index"), shape(1, 1), &mut out, &64i32);
    assert_fails(result, "ILLEGAL_ADDRESS", &["index 64 is out of bounds", "float [64]", "tests/emulator/faults.cu:"]);
    launch!(device, device.function("shared_index"), shape(1, 1), &mut out, &63i32).unwrap();
}

#[test]
fn an_index_outside_the_dynamic_shared_memory_is_found() {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<f32>(1);
    let function = device.function("dynamic_shared_index");
    let shape_with = |bytes| LaunchConfig { shared_mem_bytes: bytes, ..shape(1, 1) };
    for bytes in [0, 128, 1024] {
        let result = launch!(device, function, shape_with(bytes), &mut out, &(bytes as i32 / 4));
        let wanted = format!("byte {bytes} of {bytes} bytes of dynamic shared memory");
        assert_fails(result, "ILLEGAL_ADDRESS", &["thread (0,0,0)", &wanted]);
    }
    let result = launch!(device, function, shape_with(100), &mut out, &26i32);
    assert_fails(result, "ILLEGAL_ADDRESS", &["a write 4 bytes past the end of 100 bytes of dynamic shared"]);
    launch!(device, function, shape_with(100), &mut out, &24i32).unwrap();
}

#[test]
fn deadlocks_and_divergence_are_named() {
    let Some(device) = Device::open("faults") else { return };
    let cases: [(&str, &str, &[&str]); 8] = [
        (
            "divergent_barrier",
            "LAUNCH_TIMEOUT",
            &["deadlock: 16 of 64 threads wait at __syncthreads, ", "tests/emulator/faults.cu:"],
        ),
        ("two_barriers", "LAUNCH_FAILED", &["divergent barrier", "thread ("]),
        ("incomplete_group", "LAUNCH_TIMEOUT", &["deadlock: 31 of 64 threads wait at group_barrier"]),
        ("another_group", "LAUNCH_FAILED", &["group_barrier: this thread is not of group 0 of 32 threads"]),
        (
            "barrier_against_shuffle",
            "LAUNCH_TIMEOUT",
            &["1 of 64 threads wait at __syncthreads", "31 of 64 threads wait at __shfl_sync"],
        ),
        ("lane_outside_mask", "LAUNCH_FAILED", &[" is not in its own mask 0x0000ffff"]),
        ("shuffle_after_return", "LAUNCH_FAILED", &["__shfl_xor_sync: lane 9 of the mask 0xffffffff has ended"]),
        ("two_warp_operations", "LAUNCH_FAILED", &["another lane of its mask 0xffffffff is at __"]),
    ];
    for (name, code, parts) in cases {
        let mut out = device.fresh::<i32>(64);
        let result = launch!(device, device.function(name), shape(2, 64), &mut out);
        assert_fails(result, code, &[&["kernel ", name, ", block ("].concat()]);
        let result = launch!(device, device.function(name), shape(1, 64), &mut out);
        assert_fails(result, code, parts);
    }
}

#[test]
fn a_warp_operation_needs_whole_warps() {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<i32>(40);
    let result = launch!(device, device.function("shuffle_after_return"), shape(1, 8), &mut out);
    assert_fails(result, "LAUNCH_FAILED", &["lane 8 of the mask 0xffffffff does not exist"]);
}

#[test]
fn traps_are_errors_of_the_launch() {
    let Some(device) = Device::open("faults") else { return };
    let mut out = device.fresh::<i32>(1);
    let result = launch!(device, device.function("divide"), shape(1, 1), &mut out, &1i32, &0i32);
    assert_fails(result, "LAUNCH_FAILED", &["integer division by zero", "kernel divide", "tests/emulator/faults.cu:"]);
    let result = launch!(device, device.function("trap"), shape(1, 32), &mut out);
    assert_fails(result, "ILLEGAL_INSTRUCTION", &["kernel trap", "thread (2,0,0)", "__trap()"]);
    let result = launch!(device, device.function("large_frame"), shape(1, 32), &mut out);
    assert_fails(result, "HARDWARE_STACK_ERROR", &["kernel large_frame", "stack overflow"]);
    launch!(device, device.function("divide"), shape(1, 1), &mut out, &7i32, &2i32).unwrap();
    assert_eq!(device.stream.clone_dtoh(&out).unwrap(), [3]);
}
