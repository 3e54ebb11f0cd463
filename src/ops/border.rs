//! Pixels at the border of an image, where some taps of a 3x3 kernel meet no pixel: eight kinds of them, in the order of
//! `kernels/border.cuh`.

use super::Op;
use super::case::Case;
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

/// The gradient of what is added to the pixels of each kind: of an image the sums over each.
#[derive(Debug)]
pub struct BorderGradient;

impl Op for BorderGradient {
    fn name(&self) -> &'static str {
        "border_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        match has_kinds(inputs[0]) {
            true => Ok(vec![border_shape(inputs[0].channels.clone())]),
            false => Err(Error::shape("border_gradient", format!("{} has not 2 x 2 pixels", inputs[0]))),
        }
    }

    fn only_prepares(&self) -> bool {
        true
    }
}

impl<T: Real> OnCpu<T> for BorderGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, mut dborder) = (call.input(0), call.output(0));
        dborder.dense().par_chunks_exact_mut(dout.channels()).enumerate().for_each(|(kind, sums)| {
            sums.fill(T::ZERO);
            for position in kind_pixels(kind, dout.shape()) {
                sums.iter_mut().zip(dout.pixel(position)).for_each(|(sum, &gradient)| *sum += gradient);
            }
        });
    }
}

impl OnCuda for BorderGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dout, dborder) = (launcher.input(0), launcher.output(0));
        let [_, height, width] = dout.shape.spatial;
        let images = dout.positions() / (height * width);
        let touched = images * 2 * (height + width - 2) * dout.channels() * dout.element().bytes();
        let grid = PixelGrid::new(dout.channels(), [&dout, &dborder]);
        launcher
            .kernel(BORDER_BACKWARD)
            .pointers([dborder.pointer, dout.pointer.touching(touched)])
            .sizes([images, height, width, dout.channels(), dout.stride, grid.width])
            .launch(grid.with_blocks(BORDER_KINDS, 1))
    }
}

pub fn cases() -> Vec<Case> {
    let case = |(height, width, channels)| {
        let dout = Shape::image(3, height, width, channels);
        Case::new("border", [dout], |graph, inputs| graph.apply(BorderGradient, inputs)).forward_only()
    };
    [(2, 2, 1), (2, 5, 3), (7, 40, 33)].map(case).to_vec()
}
