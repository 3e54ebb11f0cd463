//! Max pooling: the encoder's halving of height and width.

use super::case::Case;
use super::window::Window;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{MAX_POOL_BACKWARD, MAX_POOL_BACKWARD_2X2, MAX_POOL_FORWARD, MAX_POOL_FORWARD_2X2};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// The maximum of each channel in each window. Padding never wins.
#[derive(Debug, Clone, Copy)]
pub struct MaxPool {
    pub window: Window,
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let spatial = self.window.output(inputs[0].spatial).map_err(|message| Error::shape("max_pool", message))?;
        Ok(vec![Shape { spatial, ..inputs[0].clone() }])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let op = MaxPoolGradient { window: self.window };
        Ok(vec![Some(graph.apply_one(op, &[context.of(0), context.inputs[0]])?)])
    }
}

/// `dx`: each window's `dout` goes to its first maximum. Inputs `dout`, `x`.
#[derive(Debug)]
pub struct MaxPoolGradient {
    window: Window,
}

impl Op for MaxPoolGradient {
    fn name(&self) -> &'static str {
        "max_pool_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[1].clone()])
    }
}

// ------------------------------------------------------------------ CPU

/// The input positions of an output position's window, in the kernel's order, padding left out.
fn window_positions(window: Window, x: &Shape, out: &Shape, position: usize) -> impl Iterator<Item = usize> {
    let [depth, height, width] = out.spatial;
    let corner = [position / (height * width) % depth, position / width % height, position % width];
    let sample = position / (depth * height * width);
    let size = x.spatial;
    window.offsets().filter_map(move |offset| {
        let mut index = sample;
        for axis in 0..3 {
            let at = (corner[axis] * window.stride[axis] + offset[axis]).checked_sub(window.padding[axis])?;
            if at >= size[axis] {
                return None;
            }
            index = index * size[axis] + at;
        }
        Some(index)
    })
}

impl<T: Real> OnCpu<T> for MaxPool {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let out = call.output(0);
        let shape = out.shape();
        out.for_each_pixel(|position, out| {
            maximum(x, window_positions(self.window, x.shape(), shape, position), out);
        });
    }
}

impl<T: Real> OnCpu<T> for MaxPoolGradient {
    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (dout, x) = (call.input(0), call.input(1));
        let dx = call.output(0);
        let channels = x.channels();
        // A task is one sample, or as many rows as a row of windows covers if windows do not overlap.
        let [depth, height, width] = x.shape().spatial;
        let apart = (0..3).all(|axis| self.window.kernel[axis] <= self.window.stride[axis])
            && self.window.padding == [0; 3]
            && depth == 1
            && height % self.window.stride[1] == 0;
        let rows = if apart { self.window.stride[1] } else { depth * height };
        let blocks = x.shape().positions() / (rows * width);
        let windows = dout.shape().positions() / blocks;
        dx.blocks(rows * width).for_each(|mut dx| {
            let first = dx.positions().start / (rows * width) * windows;
            dx.positions().for_each(|position| dx.pixel(position).fill(T::ZERO));
            cpu.with_scratch(2 * channels, |scratch| {
                let (best, rest) = scratch.split_at_mut(channels);
                for position in first..first + windows {
                    let positions = || window_positions(self.window, x.shape(), dout.shape(), position);
                    maximum(x, positions(), best);
                    rest.copy_from_slice(dout.pixel(position));
                    for position in positions() {
                        let values = x.pixel(position).iter().zip(&*best);
                        for ((dx, rest), (&x, &best)) in dx.pixel(position).iter_mut().zip(rest.iter_mut()).zip(values)
                        {
                            let given = if x == best { *rest } else { T::ZERO };
                            *dx += given;
                            *rest = *rest - given;
                        }
                    }
                }
            });
        });
    }
}

/// The maximum of each channel over some pixels, of which there is at least one.
fn maximum<T: Real>(x: Input<T>, mut positions: impl Iterator<Item = usize>, out: &mut [T]) {
    let first = positions.next().expect("a window has a pixel: padding is less than the kernel");
    out.copy_from_slice(x.pixel(first));
    for position in positions {
        out.iter_mut().zip(x.pixel(position)).for_each(|(out, &x)| *out = if x > *out { x } else { *out });
    }
}

// ------------------------------------------------------------------ CUDA

/// The sizes that say how windows lie: the input's and output's, the kernel's, its stride and padding.
fn window_sizes(window: Window, x: &Shape, out: &Shape) -> impl Iterator<Item = usize> {
    [x.spatial, out.spatial, window.kernel, window.stride, window.padding].into_iter().flatten()
}

/// Whether windows are 2x2 and side by side, which have kernels of their own.
fn halves(window: Window) -> bool {
    (window.kernel, window.stride, window.padding) == ([1, 2, 2], [1, 2, 2], [0; 3])
}

impl OnCuda for MaxPool {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let (pixels, channels) = (out.positions(), out.channels());
        let grid = PixelGrid::new(channels, [&out, &x]);
        if halves(self.window) {
            let [_, height, width] = x.shape.spatial;
            return launcher
                .kernel(MAX_POOL_FORWARD_2X2)
                .pointers([out.pointer, x.pointer])
                .sizes([pixels, channels, out.stride, x.stride, grid.width, height, width])
                .launch(grid.over(pixels, 1));
        }
        launcher
            .kernel(MAX_POOL_FORWARD)
            .pointers([out.pointer, x.pointer])
            .sizes([pixels, channels, out.stride, x.stride, grid.width])
            .sizes(window_sizes(self.window, x.shape, out.shape))
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for MaxPoolGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dx, dout, x) = (launcher.output(0), launcher.input(0), launcher.input(1));
        let (pixels, channels) = (x.positions(), x.channels());
        let grid = PixelGrid::new(channels, [&dx, &dout, &x]);
        if halves(self.window) {
            let [depth, height, width] = x.shape.spatial;
            let windows = x.shape.batch * depth * height.div_ceil(2) * width.div_ceil(2);
            return launcher
                .kernel(MAX_POOL_BACKWARD_2X2)
                .pointers([dx.pointer, dout.pointer, x.pointer])
                .sizes([windows, channels, dx.stride, dout.stride, x.stride, grid.width, height, width])
                .launch(grid.over(windows, 1));
        }
        launcher
            .kernel(MAX_POOL_BACKWARD)
            .pointers([dx.pointer, dout.pointer, x.pointer])
            .sizes([pixels, channels, dx.stride, dout.stride, x.stride, grid.width])
            .sizes(window_sizes(self.window, x.shape, dout.shape))
            .launch(grid.over(pixels, 1))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let half = Window::square(2, 2, 0);
    let mut cases = vec![
        (half, Shape::image(1, 2, 2, 1)),
        (half, Shape::image(3, 5, 6, 3)),
        (half, Shape::image(2, 4, 6, 33)),
        (half, Shape::image(2, 3, 7, 9)),
        (Window::square(3, 2, 1), Shape::image(2, 5, 6, 3)),
    ];
    cases.push((Window::cube(2, 2, 0), Shape::volume(2, [4, 2, 5], Channels::new(3))));
    let cases = cases.into_iter().map(|(window, shape)| {
        Case::new("max_pool", [shape], move |graph, inputs| graph.apply(MaxPool { window }, inputs)).distinct()
    });
    cases.collect()
}
