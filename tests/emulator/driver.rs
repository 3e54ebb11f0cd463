//! The driver API: graphs, events, streams, and calls that have to be refused.

use cudarc::driver::sys::{CUevent_flags, CUfunction_attribute_enum, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, DriverError, LaunchConfig, result};
use cudarc::nvrtc::Ptx;

use super::{Device, in_child, launch, run_in_child, shape};

fn message<T>(result: Result<T, DriverError>) -> String {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_captured_graph_replays_with_its_own_arguments() {
    let Some(device) = Device::open("basics") else { return };
    let mut x = device.stream.clone_htod(&[1.0f32; 10]).unwrap();
    let function = device.function("scale_in_place");
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    device.stream.begin_capture(mode).unwrap();
    let mut factor = 3.0f32;
    launch!(device, function, shape(1, 32), &mut x, &factor, &10i32).unwrap();
    factor = 2.0;
    launch!(device, function, shape(1, 32), &mut x, &factor, &5i32).unwrap();
    factor = 100.0;
    let graph = device.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().expect("work was captured");
    assert_eq!(factor, 100.0); // the graph keeps the values of the capture
    assert_eq!(device.stream.clone_dtoh(&x).unwrap(), [1.0; 10], "a capture does no work");
    for replay in 1..=3 {
        graph.launch().unwrap();
        let found = device.stream.clone_dtoh(&x).unwrap();
        assert_eq!(found, [[6f32.powi(replay); 5], [3f32.powi(replay); 5]].concat());
    }
}

#[test]
fn streams_join_a_capture_by_events() {
    let Some(device) = Device::open("basics") else { return };
    let side = device.context.new_stream().unwrap();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let mut x = device.stream.clone_htod(&[1.0f32; 4]).unwrap();
    for joined in [true, false] {
        device.stream.begin_capture(mode).unwrap();
        side.join(&device.stream).unwrap();
        side.memset_zeros(&mut x).unwrap();
        if joined {
            device.stream.join(&side).unwrap();
        }
        let graph = device.stream.end_capture(CUgraphInstantiate_flags(0));
        if joined {
            graph.unwrap().expect("work was captured").launch().unwrap();
            assert_eq!(device.stream.clone_dtoh(&x).unwrap(), [0.0; 4]);
        } else {
            assert!(message(graph.map(|_| ())).contains("STREAM_CAPTURE_UNJOINED"));
        }
    }
}

#[test]
fn what_a_capture_forbids_is_refused() {
    let Some(device) = Device::open("basics") else { return };
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let outside = device.stream.record_event(None).unwrap();
    type Operation<'a> = &'a dyn Fn() -> Result<(), DriverError>;
    let cases: [(&str, Operation); 4] = [
        ("STREAM_CAPTURE_UNSUPPORTED", &|| device.stream.synchronize()),
        ("STREAM_CAPTURE_UNSUPPORTED", &|| device.context.synchronize()),
        ("STREAM_CAPTURE_UNSUPPORTED", &|| device.stream.alloc_zeros::<f32>(4).map(|_| ())),
        ("STREAM_CAPTURE_ISOLATION", &|| device.stream.wait(&outside)),
    ];
    for (code, operation) in cases {
        device.stream.begin_capture(mode).unwrap();
        let found = message(operation());
        assert!(found.contains(code), "{found}");
        let graph = device.stream.end_capture(CUgraphInstantiate_flags(0));
        assert!(message(graph.map(|_| ())).contains("STREAM_CAPTURE_INVALIDATED"));
        device.stream.synchronize().unwrap();
    }
    let legacy = device.context.default_stream();
    assert!(message(legacy.begin_capture(mode)).contains("STREAM_CAPTURE_UNSUPPORTED"));
}

#[test]
fn events_tell_the_time() {
    let Some(device) = Device::open("basics") else { return };
    let event = || device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let start = event();
    std::thread::sleep(std::time::Duration::from_millis(5));
    let end = event();
    let elapsed = start.elapsed_ms(&end).unwrap();
    assert!((5.0..5000.0).contains(&elapsed), "{elapsed} ms");
    let without_timing = device.stream.record_event(None).unwrap();
    assert!(message(start.elapsed_ms(&without_timing)).contains("INVALID_HANDLE"));
}

#[test]
fn unknown_kernels_and_files_are_refused() {
    let Some(device) = Device::open("basics") else { return };
    let found = message(device.module.load_function("vector_subtract"));
    assert!(found.contains("NOT_FOUND") && found.contains("no kernel vector_subtract"), "{found}");
    assert!(message(device.context.load_module(Ptx::from_file("nowhere.so"))).contains("FILE_NOT_FOUND"));
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let Some(device) = Device::open("basics") else { return };
    let mut out = device.fresh::<i32>(4096);
    let function = device.function("thread_coordinates");
    let cases = [
        (shape(0, 32), "INVALID_VALUE"),
        (shape(1, 0), "INVALID_VALUE"),
        (shape(1, 1025), "INVALID_VALUE"),
        (LaunchConfig { block_dim: (32, 32, 2), ..shape(1, 1) }, "INVALID_VALUE"),
        (LaunchConfig { block_dim: (1, 1, 65), ..shape(1, 1) }, "INVALID_VALUE"),
        (LaunchConfig { grid_dim: (1, 65536, 1), ..shape(1, 1) }, "INVALID_VALUE"),
    ];
    for (shape, code) in cases {
        let found = message(launch!(device, function, shape, &mut out));
        assert!(found.contains(code) && found.contains("thread_coordinates"), "{found}");
    }
    let bounded = device.function("matrix_product_tiled");
    let x = device.fresh::<f32>(256);
    let mut c = device.fresh::<f32>(256);
    let found = message(launch!(device, bounded, shape(1, 288), &mut c, &x, &x, &16i32));
    assert!(found.contains("OUT_OF_RESOURCES") && found.contains("launch bounds allow 256"), "{found}");
}

#[test]
fn more_than_48_kib_of_dynamic_shared_memory_must_be_asked_for() {
    let Some(device) = Device::open("basics") else { return };
    let mut out = device.fresh::<f32>(2);
    let function = device.function("fresh_shared_memory");
    let shape_with = |bytes| LaunchConfig { shared_mem_bytes: bytes, ..shape(1, 32) };
    launch!(device, function, shape_with(48 << 10), &mut out).unwrap();
    let found = message(launch!(device, function, shape_with((48 << 10) + 1), &mut out));
    assert!(found.contains("INVALID_VALUE") && found.contains("49153 bytes of dynamic shared memory"), "{found}");
    let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 99 << 10).unwrap();
    launch!(device, function, shape_with(99 << 10), &mut out).unwrap();
    assert!(message(function.set_attribute(attribute, (99 << 10) + 1)).contains("this device has 101376 a block"));
}

#[test]
fn arguments_that_are_no_device_memory_are_refused() {
    let Some(device) = Device::open("basics") else { return };
    let x = device.fresh::<f32>(8);
    let function = device.function("vector_add");
    let found = message(launch!(device, function, shape(1, 32), &x, &8u64, &x, &8i32));
    assert!(found.contains("argument 1 is a pointer, but 0x8 is no device memory"), "{found}");
}

#[test]
fn a_graph_that_uses_freed_memory_is_refused() {
    let Some(device) = Device::open("basics") else { return };
    let mut x = device.stream.clone_htod(&[1.0f32; 10]).unwrap();
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    launch!(device, device.function("scale_in_place"), shape(1, 32), &mut x, &2.0f32, &10i32).unwrap();
    let graph = device.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().expect("work was captured");
    drop(x);
    let found = message(graph.launch());
    assert!(found.contains("byte 0 of the freed allocation of 40 bytes"), "{found}");
}

#[test]
fn copies_out_of_range_and_double_frees_are_refused() {
    let Some(device) = Device::open("basics") else { return };
    let x: CudaSlice<f32> = device.fresh(100);
    let address = x.leak();
    let mut host = [0.0f32; 101];
    // SAFETY: the emulator checks the range
    let copied = unsafe { result::memcpy_dtoh_sync(&mut host, address) };
    assert!(message(copied).contains("404 bytes at"));
    // SAFETY: likewise
    let copied = unsafe { result::memcpy_htod_sync(address + 4, &host[..100]) };
    assert!(message(copied).contains("not in one allocation"));
    // SAFETY: nothing else uses the leaked memory; the second free is what is tested
    unsafe {
        result::free_sync(address).unwrap();
        assert!(message(result::free_sync(address)).contains("freed already"));
        assert!(message(result::memcpy_dtoh_sync(&mut host[..100], address)).contains("freed allocation"));
    }
}

#[test]
fn memory_is_accounted_for() {
    let Some(device) = Device::open("basics") else { return };
    let (free, total) = device.context.mem_get_info().unwrap();
    assert!(free <= total && total > 1 << 20);
    // SAFETY: not allocated at all
    let refused = unsafe { device.stream.alloc::<u8>(total + 1) };
    assert!(message(refused.map(|_| ())).contains("OUT_OF_MEMORY"));
}

#[test]
fn bad_settings_are_refused() {
    if Device::open("basics").is_none() || in_child() {
        return; // the child fails before this
    }
    for (name, value, wanted) in [
        ("RARUNET_EMULATOR_ORDER", "sideways", "must be forward, reversed, shuffled or shuffled:<seed>"),
        ("RARUNET_EMULATOR_THREADS", "0", "must be a number from 1 to 1024"),
        ("RARUNET_EMULATOR_COMPUTE_CAPABILITY", "2.0", "must be 7.5, 8.0"),
    ] {
        let (passed, printed) = run_in_child("emulator::driver::bad_settings_are_refused", &[(name, value)]);
        assert!(!passed && printed.contains(wanted), "{name}={value}: {printed}");
    }
}
