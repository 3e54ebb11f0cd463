//! Pixels at the border of an image, where some taps of a 3x3 kernel meet no pixel: eight kinds of them, in the order of
//! `kernels/border.cuh`.

use super::Op;
use super::case::Case;
use super::residual::{BitsInput, Residual};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::BORDER_BACKWARD;
use crate::device::kernels::border::BORDER_KINDS;
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// The shape of a value of each channel for each kind of pixel.
pub(super) fn border_shape(channels: Channels) -> Shape {
    Shape::matrix(BORDER_KINDS, channels)
}

/// Whether no pixel is of two kinds at once.
pub(super) fn has_kinds(image: &Shape) -> bool {
    image.spatial[1..].iter().all(|&size| size > 1)
}

/// The kind of a pixel, if it is at the border of its image.
pub(super) fn border_kind(position: usize, [_, height, width]: [usize; 3]) -> Option<usize> {
    let part = |at: usize, size: usize| if at == 0 { 0 } else { 1 + usize::from(at == size - 1) };
    let place = 3 * part(position / width % height, height) + part(position % width, width);
    (place != 4).then_some(place - usize::from(place > 4))
}

/// Where pixels of a kind are in an image, along its height and along its width: 0 first, 1 between, 2 last.
fn places(kind: usize) -> [usize; 2] {
    let place = kind + usize::from(kind > 3);
    [place / 3, place % 3]
}

/// Whether a tap of a 3x3 kernel, counted row by row, meets no pixel at those of a kind.
pub(super) fn is_missed(kind: usize, tap: usize) -> bool {
    places(kind).into_iter().zip([tap / 3, tap % 3]).any(|(place, tap)| place != 1 && place == tap)
}

/// The pixels of a kind, in order.
fn kind_pixels(kind: usize, image: &Shape) -> impl Iterator<Item = usize> {
    let [_, height, width] = image.spatial;
    let [vertical, horizontal] = places(kind);
    let range = |place: usize, size: usize| [0..1, 1..size - 1, size - 1..size][place].clone();
    let (rows, columns) = (range(vertical, height), range(horizontal, width));
    let images = 0..image.positions() / (height * width);
    let rows = images.flat_map(move |image| rows.clone().map(move |row| (image * height + row) * width));
    rows.flat_map(move |first| columns.clone().map(move |column| first + column))
}

/// The gradient of what is added to the pixels of each kind before a ReLU: the sums over each of what has a bit. Inputs: an
/// image, [`Shape::bits`] of it.
#[derive(Debug)]
pub struct BorderGradient;

impl Op for BorderGradient {
    fn name(&self) -> &'static str {
        "border_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let dout = inputs[0];
        let error = |message| Err(Error::shape("border_gradient", message));
        if !has_kinds(dout) {
            return error(format!("{dout} has not 2 x 2 pixels"));
        }
        if *inputs[1] != dout.bits() {
            return error(format!("{} is not the bits of {dout}", inputs[1]));
        }
        Ok(vec![border_shape(dout.channels.clone())])
    }

    fn only_prepares(&self) -> bool {
        true
    }
}

impl<T: Real> OnCpu<T> for BorderGradient {
    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (dout, mut dborder) = (call.input(0), call.output(0));
        let positive = BitsInput::new(call.input(1), dout.channels());
        dborder.dense().par_chunks_exact_mut(dout.channels()).enumerate().for_each(|(kind, sums)| {
            sums.fill(T::ZERO);
            cpu.with_scratch(dout.channels(), |pixel| {
                for position in kind_pixels(kind, dout.shape()) {
                    positive.write_masked(dout, position, pixel);
                    sums.iter_mut().zip(&*pixel).for_each(|(sum, &gradient)| *sum += gradient);
                }
            });
        });
    }
}

impl OnCuda for BorderGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dout, positive, dborder) = (launcher.input(0), launcher.input(1), launcher.output(0));
        let [_, height, width] = dout.shape.spatial;
        let images = dout.positions() / (height * width);
        let (pixels, groups) = (images * 2 * (height + width - 2), dout.shape.bit_groups());
        let touched = pixels * dout.channels() * dout.element().bytes();
        let grid = PixelGrid::new(dout.channels(), [&dout, &dborder]);
        launcher
            .kernel(BORDER_BACKWARD)
            .pointers([dborder.pointer, dout.pointer.touching(touched), positive.pointer.touching(pixels * groups)])
            .sizes([images, height, width, dout.channels(), dout.stride, groups, grid.width])
            .launch(grid.with_blocks(BORDER_KINDS, 1))
    }
}

pub fn cases() -> Vec<Case> {
    // Of a residual block that makes the bits.
    let case = |(height, width, channels)| {
        let (op, x) = (Residual::new(channels, true), Shape::image(3, height, width, 2));
        let dout = x.with_channels(op.main.out.clone());
        let inputs = [&[dout, x.clone()][..], &op.parameter_shapes(&x.channels)].concat();
        let case = Case::new("border", inputs, move |graph, inputs| {
            let block = graph.apply(op.clone(), &inputs[1..])?;
            graph.apply(BorderGradient, &[inputs[0], block[1]])
        });
        case.rows(2, x.channels.clone()).rows(4, x.channels).forward_only()
    };
    [(2, 2, 1), (2, 5, 3), (7, 40, 33)].map(case).to_vec()
}
