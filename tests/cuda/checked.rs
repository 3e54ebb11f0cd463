//! The check of where kernels write, tried on ops that do wrong.

use super::open;
use rarunet_cuda::Result;
use rarunet_cuda::device::Device;
use rarunet_cuda::device::cpu::{Call, Cpu, OnCpu, Real};
use rarunet_cuda::device::cuda::{Launcher, OnCuda, Padding, PixelGrid};
use rarunet_cuda::device::kernels::CONCAT_COPY;
use rarunet_cuda::graph::Graph;
use rarunet_cuda::ops::Op;
use rarunet_cuda::tensor::Shape;

/// Copies all but the last row; more pixels, or more channels, than its output has.
#[derive(Debug)]
struct Stray {
    more_pixels: usize,
    more_channels: usize,
}

impl Op for Stray {
    fn name(&self) -> &'static str {
        "stray"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let [depth, height, width] = inputs[0].spatial;
        Ok(vec![Shape { spatial: [depth, height - 1, width], ..inputs[0].clone() }])
    }
}

impl<T: Real> OnCpu<T> for Stray {
    fn run(&self, _: &Cpu<T>, _: Call<T>) {}
}

impl OnCuda for Stray {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let (pixels, channels) = (out.positions() + self.more_pixels, x.shape.channels.count() + self.more_channels);
        let written = out.pointer.part(self.more_channels..out.shape.elements());
        // One element to the right, so that padding becomes what is no zero.
        launcher
            .kernel(CONCAT_COPY)
            .pointers([written, x.pointer])
            .sizes([pixels, channels - self.more_channels, channels, out.stride, x.stride, 1])
            .launch(PixelGrid::single(channels).over(pixels, 1))
    }
}

fn message(op: Stray) -> Option<String> {
    let mut device = open()?;
    let mut graph = Graph::new();
    let shape = Shape::image(1, 8, 8, 9);
    let x = graph.input(shape.clone());
    // Smaller than the output, and so behind it in the arena.
    let _behind = graph.input(Shape::flat(64));
    let out = graph.apply(op, &[x]).unwrap()[0];
    let step = device.load(graph, &[out]).unwrap();
    device.poison().unwrap();
    device.write(step, x, &vec![1.0; shape.values()]).unwrap();
    Some(device.run_checked(step, Padding::Zero).unwrap_err().to_string())
}

#[test]
fn cuda_check_finds_writes_outside_the_output() {
    let Some(message) = message(Stray { more_pixels: 1, more_channels: 0 }) else { return };
    assert!(message.contains("stray: it wrote to byte"), "{message}");
}

#[test]
fn cuda_check_finds_padding_that_is_not_zero() {
    let Some(message) = message(Stray { more_pixels: 0, more_channels: 1 }) else { return };
    assert!(message.contains("stray: padded channel 9 of pixel 0"), "{message}");
}
