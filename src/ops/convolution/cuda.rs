//! Convolution on CUDA: which kernel of `kernels/convolution.cu` a shape gets, and with how many blocks.

use super::bias::{bias_workspace, launch_bias};
use super::epilogue::Epilogue;
use super::special::{SpecialProduct, SpecialWeights};
use super::sums::Sums;
use super::tensor::{Form, Masked, TensorProduct, TensorWeights, masks};
use super::{Convolution, ConvolutionInputGradient, ConvolutionWeightGradient, SHORTCUT, Window};
use crate::Result;
use crate::device::Precision;
use crate::device::cuda::{Grid, Launcher, OnCuda, Operand, Pointer, scratch_elements};
use crate::device::kernels::convolution::{
    FEW_WEIGHTS_THREADS, NARROW_LANES, NARROW_OUTPUTS, NARROW_THREADS, SHALLOW_COLUMNS, SHALLOW_INNER, SHALLOW_PIXELS,
    SHALLOW_THREADS,
};
use crate::device::kernels::convolution_tile::{VECTORS_FORWARD_THREADS, VECTORS_PIXELS, VECTORS_THREADS};
use crate::device::kernels::matrix_tile::{TILE_INNER, TILE_THREADS};
use crate::device::kernels::*;
use crate::ops::Op;
use crate::ops::affine::AffineTerms;
use crate::ops::residual::mask_into;
use crate::ops::transpose_weight::TransposeWeight;
use crate::tensor::{CHANNEL_ALIGNMENT, Shape};
use std::sync::Arc;

/// Lanes of a warp.
pub(super) const WARP: usize = 32;
/// Two blocks for each multiprocessor of the largest GPUs: with fewer, smaller tiles are better.
const ENOUGH_BLOCKS: usize = 256;

/// The form of a convolution that tensor cores do in this precision.
pub(in crate::ops) fn tensor_form(
    precision: Precision,
    window: Window,
    groups: usize,
    images: [&Shape; 2],
) -> Option<Form> {
    if precision.is_reduced() { Form::of(window, groups, images) } else { None }
}

// ------------------------------------------------------------------ tiles

/// Rows and columns of a matrix product that a block computes; `Tile` in `kernels/matrix_tile.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Tile {
    rows: usize,
    columns: usize,
}

pub(in crate::ops) const TILE_128X64: Tile = Tile { rows: 128, columns: 64 };
const TILE_128X32: Tile = Tile { rows: 128, columns: 32 };
pub(in crate::ops) const TILE_64X32: Tile = Tile { rows: 64, columns: 32 };

impl Tile {
    /// The largest tile that wastes no columns and gives enough blocks.
    pub(in crate::ops) fn choose(rows: usize, columns: usize, copies: usize) -> Tile {
        let wide = columns.next_multiple_of(TILE_128X64.columns) == columns.next_multiple_of(TILE_128X32.columns);
        let tile = if wide { TILE_128X64 } else { TILE_128X32 };
        if rows > TILE_64X32.rows && tile.blocks(rows, columns) * copies >= ENOUGH_BLOCKS { tile } else { TILE_64X32 }
    }

    fn blocks(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Blocks along x for the rows, along y for `groups` times the columns, along z for `parts`.
    pub(in crate::ops) fn grid(self, rows: usize, columns: usize, groups: usize, parts: usize) -> Grid {
        Grid::new([rows.div_ceil(self.rows), groups * columns.div_ceil(self.columns), parts], TILE_THREADS)
    }
}

/// The kernels of a matrix product whose blocks compute tiles, the largest first: in f32, and in tf32.
pub(in crate::ops) struct TileKernels {
    pub f32: [Kernel; 3],
    pub tf32: [Kernel; 3],
}

impl TileKernels {
    /// The one that this device computes such tiles with.
    pub(in crate::ops) fn of(&self, tile: Tile, launcher: &Launcher) -> Kernel {
        let [largest, narrow, small] = if launcher.precision() == Precision::Tf32 { self.tf32 } else { self.f32 };
        match tile {
            TILE_128X64 => largest,
            TILE_128X32 => narrow,
            _ => small,
        }
    }
}

// ------------------------------------------------------------------ geometry

/// `Geometry` in `kernels/window.cuh`: target pixels are written, source pixels are read.
struct Geometry {
    /// Of the target, all samples together.
    pixels: usize,
    source: [usize; 3],
    target: [usize; 3],
    window: Window,
    dilation: [usize; 3],
}

impl Geometry {
    /// What a convolution reads and writes; its weight gradient reads both.
    fn forward(window: Window, x: &Shape, out: &Shape) -> Self {
        Geometry { pixels: out.positions(), source: x.spatial, target: out.spatial, window, dilation: [1; 3] }
    }

    /// The flipped window that reads `dout` and writes `dx`.
    fn backward(window: Window, dout: &Shape, dx: &Shape) -> Self {
        let Window { kernel, stride, padding } = window;
        let padding = std::array::from_fn(|axis| kernel[axis] - 1 - padding[axis]);
        let window = Window { kernel, stride: [1; 3], padding };
        Geometry { pixels: dx.positions(), source: dout.spatial, target: dx.spatial, window, dilation: stride }
    }

    /// In the order of `GEOMETRY_PARAMETERS`.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let Window { kernel, stride, padding } = self.window;
        let axes = [self.source, self.target, kernel, stride, padding, self.dilation];
        std::iter::once(self.pixels).chain(axes.into_iter().flatten())
    }

    fn is_plain(&self) -> bool {
        self.dilation == [1; 3]
    }

    /// Whether the axes of a tap fit in the bits of one word; see `bits_of` in `kernels/window.cuh`.
    fn fits_bits(&self) -> bool {
        self.window.kernel.iter().sum::<usize>() <= 32
    }

    /// Whether each pixel meets one pixel of the same place.
    fn is_pointwise(&self) -> bool {
        self.window.taps() == 1 && self.window.stride == [1; 3] && self.is_plain()
    }
}

// ------------------------------------------------------------------ forward and input gradient

/// Of the kernels for tensors of one element, for a source that is stored in full beside a target that is not, and the
/// other way round: the one for this target (or `dout`) and source (or `x`).
pub(in crate::ops) fn any_kernel([target, source]: [Operand; 2], [same, from_full, to_full]: [Kernel; 3]) -> Kernel {
    match (target.element(), source.element()) {
        (a, b) if a == b => same,
        (_, Element::F32) => from_full,
        _ => to_full,
    }
}

/// The kernels of one direction, by what they are for.
struct Kernels {
    tiles: TileKernels,
    any: [Kernel; 3],
    shallow: Kernel,
    narrow: Kernel,
    narrow_deep: Option<Kernel>,
    vectors: Kernel,
    /// Columns of the weights that a block of `vectors` has, and its threads.
    vectors_columns: usize,
    vectors_threads: usize,
    special: fn(Window, usize, [Operand; 2], bool) -> Option<SpecialProduct>,
}

const FORWARD: Kernels = Kernels {
    tiles: TileKernels {
        f32: [CONVOLUTION_FORWARD_128X64, CONVOLUTION_FORWARD_128X32, CONVOLUTION_FORWARD_64X32],
        tf32: [CONVOLUTION_FORWARD_128X64_TF32, CONVOLUTION_FORWARD_128X32_TF32, CONVOLUTION_FORWARD_64X32_TF32],
    },
    any: [CONVOLUTION_FORWARD_ANY, CONVOLUTION_FORWARD_ANY_FROM_FULL, CONVOLUTION_FORWARD_ANY_TO_FULL],
    shallow: CONVOLUTION_FORWARD_SHALLOW,
    narrow: CONVOLUTION_FORWARD_NARROW,
    narrow_deep: Some(CONVOLUTION_FORWARD_NARROW_DEEP),
    vectors: CONVOLUTION_FORWARD_VECTORS,
    vectors_columns: WARP,
    vectors_threads: VECTORS_FORWARD_THREADS,
    special: SpecialProduct::forward,
};

const BACKWARD_INPUT: Kernels = Kernels {
    tiles: TileKernels {
        f32: [CONVOLUTION_BACKWARD_INPUT_128X64, CONVOLUTION_BACKWARD_INPUT_128X32, CONVOLUTION_BACKWARD_INPUT_64X32],
        tf32: [
            CONVOLUTION_BACKWARD_INPUT_128X64_TF32,
            CONVOLUTION_BACKWARD_INPUT_128X32_TF32,
            CONVOLUTION_BACKWARD_INPUT_64X32_TF32,
        ],
    },
    any: [
        CONVOLUTION_BACKWARD_INPUT_ANY,
        CONVOLUTION_BACKWARD_INPUT_ANY_FROM_FULL,
        CONVOLUTION_BACKWARD_INPUT_ANY_TO_FULL,
    ],
    shallow: CONVOLUTION_BACKWARD_INPUT_SHALLOW,
    narrow: CONVOLUTION_BACKWARD_INPUT_NARROW,
    narrow_deep: None,
    vectors: CONVOLUTION_BACKWARD_INPUT_VECTORS,
    vectors_columns: VECTORS_THREADS / WARP,
    vectors_threads: VECTORS_THREADS,
    special: SpecialProduct::backward,
};

/// Pixels that `vectors` is used for at most: a tile would hardly be filled.
pub(super) const MOST_VECTORS: usize = 64;

/// A convolution from source to target pixels.
struct Correlation<'a> {
    kernels: &'static Kernels,
    geometry: Geometry,
    groups: usize,
    target: Operand<'a>,
    source: Operand<'a>,
    weight: Pointer,
    bias: Option<Pointer>,
}

impl Correlation<'_> {
    /// Channels of a group of the source and of the target.
    fn channels(&self) -> (usize, usize) {
        (self.source.channels() / self.groups, self.target.channels() / self.groups)
    }

    /// Whether everything that a tile loads or stores comes in whole pieces of 16 bytes.
    fn is_aligned(&self) -> bool {
        let (inputs, outputs) = self.channels();
        let operands = self.source.is_aligned() && self.target.is_aligned();
        let parameters = self.weight.is_aligned() && self.bias.is_none_or(Pointer::is_aligned);
        let geometry = self.geometry.is_plain() && self.geometry.fits_bits();
        self.is_full()
            && operands
            && parameters
            && geometry
            && inputs.is_multiple_of(TILE_INNER)
            && outputs.is_multiple_of(4)
    }

    /// Whether source and target are stored in full.
    fn is_full(&self) -> bool {
        [self.source, self.target].iter().all(|operand| operand.element() == Element::F32)
    }

    fn kernel(&self, launcher: &Launcher) -> (Kernel, Grid) {
        let (inputs, outputs) = self.channels();
        let pixels = self.geometry.pixels;
        let taps = self.geometry.window.taps();
        if self.groups == 1 && self.is_full() && self.geometry.is_pointwise() && pixels <= MOST_VECTORS {
            let blocks = [outputs.div_ceil(self.kernels.vectors_columns), pixels.div_ceil(VECTORS_PIXELS), 1];
            return (self.kernels.vectors, Grid::new(blocks, self.kernels.vectors_threads));
        }
        if self.groups == 1 && self.geometry.is_plain() && outputs <= NARROW_OUTPUTS {
            let deep = self.kernels.narrow_deep.filter(|_| self.source.is_aligned() && inputs >= 4 * NARROW_LANES);
            let lanes = if deep.is_some() { NARROW_LANES } else { 1 };
            return (deep.unwrap_or(self.kernels.narrow), Grid::over(pixels * lanes, NARROW_THREADS));
        }
        let few_inputs = inputs < CHANNEL_ALIGNMENT && taps * inputs <= SHALLOW_INNER;
        if self.groups == 1 && self.geometry.is_plain() && few_inputs && self.target.is_aligned() {
            let quads = outputs.min(SHALLOW_COLUMNS) / 4;
            let per_block = SHALLOW_THREADS / quads * SHALLOW_PIXELS;
            let blocks = [pixels.div_ceil(per_block), outputs.div_ceil(SHALLOW_COLUMNS), 1];
            return (self.kernels.shallow, Grid::new(blocks, SHALLOW_THREADS));
        }
        if !self.is_aligned() {
            let kernel = any_kernel([self.target, self.source], self.kernels.any);
            return (kernel, TILE_64X32.grid(pixels, outputs, self.groups, 1));
        }
        let tile = Tile::choose(pixels, outputs, self.groups);
        (self.kernels.tiles.of(tile, launcher), tile.grid(pixels, outputs, self.groups, 1))
    }

    /// The kernel of its own that it has.
    fn special(&self) -> Option<SpecialProduct> {
        let aligned = self.weight.is_aligned() && self.bias.is_none_or(Pointer::is_aligned);
        let operands = [self.target, self.source];
        // What is kept of its size by a window is so by the flipped one.
        if self.geometry.is_plain() {
            (self.kernels.special)(self.geometry.window, self.groups, operands, aligned)
        } else {
            None
        }
    }

    /// As [`Correlation::launch`]; returns what is still to be added of the terms.
    fn launch_affine<'t>(
        &self,
        launcher: &mut Launcher,
        affine: Option<AffineTerms<Operand<'t>>>,
    ) -> Result<Option<AffineTerms<Operand<'t>>>> {
        let with_terms = self.special().filter(|special| special.kernel == CONVOLUTION_BACKWARD_INPUT_ONE_OUTPUT);
        match (affine.filter(|terms| terms.is_aligned()), with_terms) {
            (Some(terms), Some(special)) => launcher
                .kernel(CONVOLUTION_BACKWARD_INPUT_ONE_OUTPUT_AFFINE)
                .pointers([self.target.pointer, self.source.pointer, self.weight])
                .pointers([terms.x, terms.scale, terms.offset].map(|operand| operand.pointer))
                .sizes(special.sizes)
                .sizes([terms.x.stride])
                .launch(special.grid)
                .map(|()| None),
            _ => self.launch(launcher, &[]).map(|()| affine),
        }
    }

    /// Launches; `flags` are the parameters that end the kernel's list.
    fn launch(&self, launcher: &mut Launcher, flags: &[bool]) -> Result<()> {
        let special = self.special();
        let (kernel, grid) =
            special.as_ref().map_or_else(|| self.kernel(launcher), |special| (special.kernel, special.grid));
        let (inputs, outputs) = self.channels();
        let launch = launcher
            .kernel(kernel)
            .pointers([self.target.pointer, self.source.pointer, self.weight])
            .pointers(self.bias);
        let launch = if let Some(special) = special {
            launch.sizes(special.sizes)
        } else {
            let launch = if kernel == self.kernels.vectors {
                launch.sizes([self.geometry.pixels])
            } else {
                launch.sizes(self.geometry.sizes()).sizes([self.groups])
            };
            launch.sizes([inputs, outputs, self.target.stride, self.source.stride])
        };
        flags.iter().fold(launch, |launch, &flag| launch.flag(flag)).launch(grid)
    }
}

impl OnCuda for Convolution {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x, weight) = (launcher.output(0), launcher.input(0), launcher.input(1));
        let bias = self.has_bias(launcher.inputs()).then(|| launcher.input(2).pointer);
        let first = self.first_added(launcher.inputs());
        let epilogue = Epilogue {
            added: self.add.then(|| launcher.input(first)),
            affine: self.affine.then(|| AffineTerms::new(first, |index| launcher.input(index))),
            relu: self.relu,
            ..Epilogue::default()
        };
        if let Some(form) = tensor_form(launcher.precision(), self.window, self.groups, [x.shape, out.shape]) {
            let bias = bias.map(|bias| (bias, out.channels()));
            let weight = weight.pointer;
            let product = TensorProduct { form, target: out, source: x, weight, bias, epilogue };
            return product.forward(launcher, None);
        }
        self.launch_untensored(launcher, out, [x, weight], bias)?;
        epilogue.launch(launcher, out)
    }
}

impl Convolution {
    /// By a kernel that is not for tensor cores in 16 bits, without what the epilogue adds.
    pub(in crate::ops) fn launch_untensored(
        &self,
        launcher: &mut Launcher,
        out: Operand,
        [x, weight]: [Operand; 2],
        bias: Option<Pointer>,
    ) -> Result<()> {
        let correlation = Correlation {
            kernels: &FORWARD,
            geometry: Geometry::forward(self.window, x.shape, out.shape),
            groups: self.groups,
            target: out,
            source: x,
            weight: weight.pointer,
            // Without a bias the kernel gets a pointer that it does not read.
            bias: Some(bias.unwrap_or(weight.pointer.unused(Element::F32))),
        };
        correlation.launch(launcher, &[bias.is_some(), self.relu && !self.add])
    }
}

impl ConvolutionInputGradient {
    /// The form that tensor cores do.
    fn tensor_form(&self, precision: Precision, [dx, dout]: [&Shape; 2]) -> Option<Form> {
        tensor_form(precision, self.window, self.groups, [dx, dout])
    }
}

impl OnCuda for ConvolutionInputGradient {
    fn workspace(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        if !self.residual {
            return 0;
        }
        // Of `dout` what has a bit, where no kernel masks it in passing; and the shortcut's part.
        let tensors = match self.tensor_form(precision, [outputs[0], inputs[0]]) {
            Some(_) if masks(inputs[0]) => &[][..],
            Some(_) => &[inputs[0]],
            None => &[inputs[0], outputs[0]],
        };
        tensors.iter().map(|shape| scratch_elements(precision, shape)).sum()
    }

    fn prepared(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> Option<(usize, Arc<dyn Op>)> {
        if self.tensor_form(precision, [outputs[0], inputs[0]]) != Some(Form::Same3) {
            return None;
        }
        let taps = self.window.kernel.iter().product();
        Some((1, Arc::new(TransposeWeight::new(taps, self.input.channels.clone()))))
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dx, dout, weight) = (launcher.output(0), launcher.input(0), launcher.input(1).pointer);
        let first = self.first_added();
        let epilogue = Epilogue {
            added: self.add.then(|| launcher.input(first)),
            affine: self.affine.then(|| AffineTerms::new(first, |index| launcher.input(index))),
            relu: false,
            mask: self.mask.then(|| launcher.input(launcher.inputs() - 1)),
        };
        let residual = self.residual.then(|| [2, 3].map(|index| launcher.input(index)));
        if let Some(form) = self.tensor_form(launcher.precision(), [dx.shape, dout.shape]) {
            let block = residual.map(|[shortcut, positive]| Masked { positive, shortcut: shortcut.pointer });
            let product = TensorProduct { form, target: dx, source: dout, weight, bias: None, epilogue };
            return product.transposed(launcher, block.as_ref());
        }
        let product = |window, groups, target, source, weight| Correlation {
            kernels: &BACKWARD_INPUT,
            geometry: Geometry::backward(window, dout.shape, dx.shape),
            groups,
            target,
            source,
            weight,
            bias: None,
        };
        let Some([shortcut, positive]) = residual else {
            let main = product(self.window, self.groups, dx, dout, weight);
            let affine = main.launch_affine(launcher, epilogue.affine)?;
            return Epilogue { affine, ..epilogue }.launch(launcher, dx);
        };
        let part = launcher.scratch(scratch_elements(launcher.precision(), dout.shape), dx);
        product(SHORTCUT, 1, dx, dout, shortcut.pointer).launch(launcher, &[])?;
        let masked = mask_into(launcher, 0, dout, positive)?;
        product(self.window, 1, part, masked, weight).launch(launcher, &[])?;
        Epilogue { added: Some(part), ..Epilogue::default() }.launch(launcher, dx)?;
        epilogue.launch(launcher, dx)
    }
}

// ------------------------------------------------------------------ weight gradient

const BACKWARD_WEIGHT: TileKernels = TileKernels {
    f32: [CONVOLUTION_BACKWARD_WEIGHT_128X64, CONVOLUTION_BACKWARD_WEIGHT_128X32, CONVOLUTION_BACKWARD_WEIGHT_64X32],
    tf32: [
        CONVOLUTION_BACKWARD_WEIGHT_128X64_TF32,
        CONVOLUTION_BACKWARD_WEIGHT_128X32_TF32,
        CONVOLUTION_BACKWARD_WEIGHT_64X32_TF32,
    ],
};

/// Weights that have a thread each at most.
const FEW_WEIGHTS: usize = 1024;
/// Blocks to make of all parts: four for each multiprocessor of the largest GPUs.
pub(super) const PART_BLOCKS: usize = 512;
/// Pixels of a part at least, which pay for writing and adding its sums.
pub(super) const PART_PIXELS: usize = 256;
/// All parts' sums together have at most this many elements, 64 MiB, if there are several.
const PART_ELEMENTS: usize = 1 << 24;

/// How the pixels are divided: by shape alone, as the order of the sum depends on it.
struct Division {
    /// Rows and columns, of a group, of the matrix of weights.
    rows: usize,
    columns: usize,
    few: bool,
    tile: Tile,
    parts: usize,
    /// Rows of the image in a part.
    part_rows: usize,
}

impl Division {
    fn new(op: &ConvolutionWeightGradient, dout: &Shape, x: &Shape) -> Self {
        let ConvolutionWeightGradient { window, groups, .. } = *op;
        let (rows, columns) = (window.taps() * x.channels.stored() / groups, dout.channels.stored() / groups);
        let elements = rows * columns * groups;
        let few = groups == 1 && elements <= FEW_WEIGHTS;
        let image_rows = dout.positions() / dout.spatial[2];
        let most_parts = dout.positions().div_ceil(PART_PIXELS).min(image_rows).min((PART_ELEMENTS / elements).max(1));
        let tile = Tile::choose(rows, columns, groups * most_parts);
        let blocks = if few { elements.div_ceil(FEW_WEIGHTS_THREADS) } else { tile.blocks(rows, columns) * groups };
        let parts = PART_BLOCKS.div_ceil(blocks).min(most_parts);
        let part_rows = image_rows.div_ceil(parts);
        Division { rows, columns, few, tile, parts: image_rows.div_ceil(part_rows), part_rows }
    }
}

impl ConvolutionWeightGradient {
    /// Elements of workspace for gradients of so many.
    pub(in crate::ops) fn cuda_workspace(
        &self,
        precision: Precision,
        [dout, x]: [&Shape; 2],
        gradients: &[&Shape],
    ) -> usize {
        let parts = match tensor_form(precision, self.window, self.groups, [dout, x]) {
            Some(form) => TensorWeights::new(form, dout, x).shares,
            None => {
                let parts = Division::new(self, dout, x).parts;
                SpecialWeights::of(self, dout, x).map_or(parts, |special| parts.max(special.parts))
            }
        };
        let elements = gradients.iter().map(|gradient| gradient.elements()).sum::<usize>();
        let bias = self.bias_terms(dout, x).map_or(0, |(terms, kernel)| bias_workspace(terms, kernel));
        bias.max(if parts == 1 { 0 } else { parts * elements })
    }

    /// Computes the gradients of the weights and, if there is one, of the bias.
    pub(in crate::ops) fn launch_from(
        &self,
        launcher: &mut Launcher,
        [dout, x]: [Operand; 2],
        gradients: &[Operand],
    ) -> Result<()> {
        if let Some(form) = tensor_form(launcher.precision(), self.window, self.groups, [dout.shape, x.shape]) {
            return TensorWeights::new(form, dout.shape, x.shape).launch(launcher, gradients, [dout, x], self.bias);
        }
        let special = SpecialWeights::of(self, dout.shape, x.shape).filter(|special| special.takes(dout, x));
        if let Some(special) = special {
            let sums = Sums::new(launcher, gradients, special.parts);
            special.launch(launcher, &sums, dout, x)?;
            return sums.launch(launcher);
        }
        let Division { rows, columns, few, tile, parts, part_rows } = Division::new(self, dout.shape, x.shape);
        let sums = Sums::new(launcher, &gradients[..1], parts);
        let inputs = rows / self.window.taps();
        let aligned = dout.is_aligned() && x.is_aligned() && sums.parts(0).is_aligned();
        let full = dout.element() == Element::F32 && x.element() == Element::F32;
        let aligned = full && aligned && inputs.is_multiple_of(4) && columns.is_multiple_of(4);
        let (kernel, grid) = if few {
            let blocks = [(rows * columns).div_ceil(FEW_WEIGHTS_THREADS), parts, 1];
            let kernels = [
                CONVOLUTION_BACKWARD_WEIGHT_FEW,
                CONVOLUTION_BACKWARD_WEIGHT_FEW_FULL_X,
                CONVOLUTION_BACKWARD_WEIGHT_FEW_FULL_DOUT,
            ];
            (any_kernel([dout, x], kernels), Grid::new(blocks, FEW_WEIGHTS_THREADS))
        } else if aligned {
            (BACKWARD_WEIGHT.of(tile, launcher), tile.grid(rows, columns, self.groups, parts))
        } else {
            // Each tap's channels are rounded up to whole quads.
            let rows = self.window.taps() * inputs.next_multiple_of(4);
            let kernels = [
                CONVOLUTION_BACKWARD_WEIGHT_ANY,
                CONVOLUTION_BACKWARD_WEIGHT_ANY_FULL_X,
                CONVOLUTION_BACKWARD_WEIGHT_ANY_FULL_DOUT,
            ];
            (any_kernel([dout, x], kernels), TILE_64X32.grid(rows, columns, self.groups, parts))
        };
        launcher
            .kernel(kernel)
            .pointers([sums.parts(0), dout.pointer, x.pointer])
            .sizes(Geometry::forward(self.window, x.shape, dout.shape).sizes())
            .sizes([self.groups, inputs, columns, dout.stride, x.stride, part_rows])
            .launch(grid)?;
        sums.launch(launcher)?;
        // The weights' sums are done with, and so its own may lie where they were.
        match self.bias_terms(dout, x) {
            Some((terms, kernel)) => launch_bias(launcher, gradients[1], terms, kernel),
            None => Ok(()),
        }
    }
}

impl OnCuda for ConvolutionWeightGradient {
    fn workspace(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        self.cuda_workspace(precision, [inputs[0], inputs[1]], outputs)
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dout, x] = [0, 1].map(|index| launcher.input(index));
        let gradients: Vec<Operand> = (0..launcher.outputs()).map(|index| launcher.output(index)).collect();
        self.launch_from(launcher, [dout, x], &gradients)
    }
}
