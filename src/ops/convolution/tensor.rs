//! Convolution on tensor cores: which kernel of `kernels/convolution_tensor*.cu` a shape gets, and with how many blocks.

use super::epilogue::Epilogue;
use super::sums::Sums;
use super::{BiasOf, Window};
use crate::Result;
use crate::device::cuda::{Grid, Launcher, Operand, Pointer};
use crate::device::kernels::convolution_tensor_hopper::{GROUP_COLUMNS, GROUP_WIDTH};
use crate::device::kernels::convolution_tensor_weight::{MOST_GROUPS, WEIGHT_PATCH_ROWS};
use crate::device::kernels::patch::{PATCH_WIDTH, PIECE, TENSOR_THREADS};
use crate::device::kernels::tensor_correlation::GROUPS_OF_WORD;
use crate::device::kernels::*;
use crate::ops::batch_norm::EPSILON;
use crate::ops::residual::mask_into;
use crate::tensor::{CHANNEL_ALIGNMENT, Shape, Storage};

/// Fewer blocks leave multiprocessors of large GPUs idle: smaller tiles are better then.
const ENOUGH_BLOCKS: usize = 128;
/// The first compute capability whose blocks have room for the larger tiles.
const AMPERE: (i32, i32) = (8, 0);
/// Groups of channels whose bits a 3x3 tile masks its source by, at most: every device's blocks have room for as many beside
/// the tile.
const MOST_MASKED: usize = 32;
/// Bytes of a 16-bit element.
const ELEMENT: usize = 2;

// ------------------------------------------------------------------ which convolutions

/// What tensor cores have kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Form {
    /// 3x3, keeping the size.
    Same3,
    /// 1x1, or any window whose stride is its size, between a large and a small image: height and width.
    Patches([usize; 2]),
}

impl Form {
    /// The form of a convolution of one group, if both of its images are stored in 16 bits where anything is.
    pub(in crate::ops) fn of(window: Window, groups: usize, images: [&Shape; 2]) -> Option<Form> {
        let Window { kernel, stride, padding } = window;
        let reduced = images.iter().all(|shape| shape.storage == Storage::Reduced);
        if groups > 1 || !reduced || kernel[0] != 1 || stride[0] != 1 || padding[0] != 0 {
            return None;
        }
        match (kernel, stride, padding) {
            ([1, 3, 3], [1, 1, 1], [0, 1, 1]) => Some(Form::Same3),
            // The windows cover the large image.
            (kernel, stride, [0, 0, 0])
                if kernel == stride && images.iter().any(|small| covers(images, small, kernel)) =>
            {
                Some(Form::Patches([kernel[1], kernel[2]]))
            }
            _ => None,
        }
    }

    fn window(self) -> [usize; 2] {
        match self {
            Form::Same3 => [1, 1],
            Form::Patches(window) => window,
        }
    }

    fn taps(self) -> usize {
        match self {
            Form::Same3 => 9,
            Form::Patches([height, width]) => height * width,
        }
    }
}

/// Whether each image is the small one or as large as its windows.
fn covers(images: [&Shape; 2], small: &Shape, kernel: [usize; 3]) -> bool {
    let large = std::array::from_fn(|axis| small.spatial[axis] * kernel[axis]);
    let [a, b] = images.map(|image| image.spatial);
    (a, b) == (small.spatial, large) || (a, b) == (large, small.spatial)
}

/// Patches of so many rows and columns that cover an image.
fn patches(image: &Shape, rows: usize, columns: usize) -> usize {
    let [depth, height, width] = image.spatial;
    image.batch * depth * height.div_ceil(rows) * width.div_ceil(columns)
}

// ------------------------------------------------------------------ forward and input gradient

/// A block's patch of pixels and its target channels, the source channels of a step, and the steps in its shared memory:
/// `TileSizes` in the kernels.
struct Tile {
    forward: Kernel,
    backward_input: Kernel,
    /// Both convolutions' of a residual block.
    residual_backward_input: Option<Kernel>,
    kernel: usize,
    rows: usize,
    width: usize,
    columns: usize,
    depth: usize,
    stages: usize,
}

const SAME_512X32: Tile = Tile {
    forward: CONVOLUTION_FORWARD_3X3_512X32,
    backward_input: CONVOLUTION_BACKWARD_INPUT_3X3_512X32,
    residual_backward_input: Some(RESIDUAL_BACKWARD_INPUT_3X3_512X32),
    kernel: 3,
    rows: 32,
    width: PATCH_WIDTH,
    columns: 32,
    depth: 16,
    stages: 2,
};
const SAME_256X64: Tile = Tile {
    forward: CONVOLUTION_FORWARD_3X3_256X64,
    backward_input: CONVOLUTION_BACKWARD_INPUT_3X3_256X64,
    residual_backward_input: Some(RESIDUAL_BACKWARD_INPUT_3X3_256X64),
    kernel: 3,
    rows: 16,
    width: PATCH_WIDTH,
    columns: 64,
    depth: 16,
    stages: 2,
};
const SAME_256X32: Tile = Tile {
    forward: CONVOLUTION_FORWARD_3X3_256X32,
    backward_input: CONVOLUTION_BACKWARD_INPUT_3X3_256X32,
    residual_backward_input: Some(RESIDUAL_BACKWARD_INPUT_3X3_256X32),
    kernel: 3,
    rows: 16,
    width: PATCH_WIDTH,
    columns: 32,
    depth: 16,
    stages: 2,
};
const PATCHES_256X32: Tile = Tile {
    forward: CONVOLUTION_FORWARD_1X1_256X32,
    backward_input: CONVOLUTION_BACKWARD_INPUT_1X1_256X32,
    residual_backward_input: None,
    kernel: 1,
    rows: 16,
    width: PATCH_WIDTH,
    columns: 32,
    depth: 32,
    stages: 2,
};
const PATCHES_128X64: Tile = Tile {
    forward: CONVOLUTION_FORWARD_1X1_128X64,
    backward_input: CONVOLUTION_BACKWARD_INPUT_1X1_128X64,
    residual_backward_input: None,
    kernel: 1,
    rows: 8,
    width: PATCH_WIDTH,
    columns: 64,
    depth: 32,
    stages: 3,
};
/// For warp groups.
const SAME_128X64_HOPPER: Tile = Tile {
    forward: CONVOLUTION_FORWARD_3X3_128X64_HOPPER,
    backward_input: CONVOLUTION_BACKWARD_INPUT_3X3_128X64_HOPPER,
    residual_backward_input: Some(RESIDUAL_BACKWARD_INPUT_3X3_128X64_HOPPER),
    kernel: 3,
    rows: 16,
    width: GROUP_WIDTH,
    columns: GROUP_COLUMNS,
    depth: 16,
    stages: 2,
};

impl Tile {
    /// For a product whose small image and target channels are these.
    fn choose(form: Form, small: &Shape, columns: usize, launcher: &Launcher) -> &'static Tile {
        // Half of a wide tile would compute nothing.
        let narrow = (1..=32).contains(&(columns % 64));
        let ampere = launcher.capability() >= AMPERE;
        if let Form::Patches(_) = form {
            return match narrow {
                true => &PATCHES_256X32,
                false => &PATCHES_128X64,
            };
        }
        let large = &SAME_256X64;
        let blocks = patches(small, large.rows, large.width) * columns.div_ceil(large.columns);
        // The larger tiles take more shared memory than blocks of sm_75 have.
        if launcher.has_warp_groups() && !narrow {
            &SAME_128X64_HOPPER
        } else if !ampere || blocks < ENOUGH_BLOCKS {
            &SAME_256X32
        } else if !narrow {
            &SAME_256X64
        } else if small.spatial[1] > SAME_256X32.rows {
            &SAME_512X32
        } else {
            &SAME_256X32
        }
    }

    /// Pixels that the kernel covers.
    fn source_pixels(&self) -> usize {
        (self.rows + self.kernel - 1) * (self.width + self.kernel - 1)
    }

    /// Bytes of shared memory of a block, without bits.
    fn shared(&self, transposed: bool) -> usize {
        let pixels = self.source_pixels();
        let (lines, line) = if transposed { (self.columns, self.depth) } else { (self.depth, self.columns) };
        let taps = self.kernel * self.kernel;
        let elements = if self.width == GROUP_WIDTH {
            // All pixels' first pieces, then the second ones, which begin in other banks anyway; lines are not padded.
            pixels * self.depth + taps * lines * line
        } else {
            pixels * (self.depth + PIECE) + taps * lines * (line + PIECE)
        };
        self.stages * elements * ELEMENT
    }
}

/// A residual block's forward pass: the 3x3 product ends in a ReLU, and the shortcut's, of the same source, is added.
pub(in crate::ops) struct Rectified {
    /// The shortcut's weight and bias.
    pub shortcut: [Pointer; 2],
    /// Added to the 3x3 product at the border.
    pub border: Option<Pointer>,
    /// Where the 3x3 product is above zero is written there.
    pub positive: Option<Pointer>,
    /// The result is normalised: by these `gamma`, `beta`, running mean and running variance.
    pub norm: Option<[Pointer; 4]>,
}

/// Whether the kernels mask such a source by its bits, in passing.
pub(super) fn masks(source: &Shape) -> bool {
    let groups = source.bit_groups();
    groups.is_multiple_of(GROUPS_OF_WORD) && groups <= MOST_MASKED
}

/// A residual block's input gradient: for the 3x3 product the source is zero where there is no bit, and the shortcut's, of the
/// source as it is, is added.
pub(in crate::ops) struct Masked<'a> {
    pub positive: Operand<'a>,
    /// The shortcut's weight.
    pub shortcut: Pointer,
}

/// A product of source pixels and weights.
pub(in crate::ops) struct TensorProduct<'a> {
    pub form: Form,
    pub target: Operand<'a>,
    pub source: Operand<'a>,
    pub weight: Pointer,
    /// And how many elements it has: those of all columns, again and again if they are fewer.
    pub bias: Option<(Pointer, usize)>,
    pub epilogue: Epilogue<'a>,
}

impl TensorProduct<'_> {
    /// Forward: the source may be the large image.
    pub(in crate::ops) fn forward(&self, launcher: &mut Launcher, block: Option<&Rectified>) -> Result<()> {
        let columns = self.target.channels();
        let tile = Tile::choose(self.form, self.target.shape, columns, launcher);
        match self.form {
            Form::Same3 => self.launch_forward(launcher, tile, block),
            Form::Patches(_) => self.launch_patches(launcher, tile, tile.forward, self.target.shape, columns),
        }
    }

    /// The input gradient, or transposed convolution: the target may be the large image. The weights of a 3x3 kernel are
    /// what [`TransposeWeight`](crate::ops::transpose_weight::TransposeWeight) makes of them.
    pub(in crate::ops) fn transposed(&self, launcher: &mut Launcher, block: Option<&Masked>) -> Result<()> {
        let columns = self.target.channels() * self.form.window().iter().product::<usize>();
        let tile = Tile::choose(self.form, self.source.shape, columns, launcher);
        match self.form {
            Form::Same3 => self.launch_backward_input(launcher, tile, block),
            Form::Patches(_) => self.launch_patches(launcher, tile, tile.backward_input, self.source.shape, columns),
        }
    }

    /// A tensor's pointer, or for none one that the kernel does not read, and its stride, or 0.
    fn optional(&self, operand: Option<Operand>) -> (Pointer, usize) {
        let unused = (self.target.pointer.unused(self.target.element()), 0);
        operand.map_or(unused, |operand| (operand.pointer, operand.stride))
    }

    fn grid(&self, tile: &Tile, small: &Shape, columns: usize) -> Grid {
        Grid::new([patches(small, tile.rows, tile.width), columns.div_ceil(tile.columns), 1], TENSOR_THREADS)
    }

    /// A 3x3 kernel, and a residual block's shortcut.
    fn launch_forward(&self, launcher: &mut Launcher, tile: &Tile, block: Option<&Rectified>) -> Result<()> {
        let (target, source, own) = (self.target, self.source, &self.epilogue);
        let alone = own.added.is_none() && own.affine.is_none() && own.mask.is_none();
        assert!(alone, "3x3 kernels add to nothing forward, and mask nothing");
        let [_, height, width] = target.shape.spatial;
        let none = self.weight.unused(Element::F32);
        let shortcut = block.map_or([self.weight.unused(target.element()), none], |block| block.shortcut);
        let positive = block.and_then(|block| block.positive);
        let (border, norm) = (block.and_then(|block| block.border), block.and_then(|block| block.norm));
        launcher
            .kernel(tile.forward)
            .shared(tile.shared(false))
            .pointers([target.pointer, positive.unwrap_or(target.pointer.unused(Element::Bits)), source.pointer])
            .pointers([self.weight, self.bias.map_or(none, |(bias, _)| bias)])
            .pointers(shortcut)
            .pointers([border.unwrap_or(none)])
            .pointers(norm.unwrap_or([none; 4]))
            .sizes([height, width, source.channels(), target.channels(), target.stride, source.stride])
            .sizes([positive.map_or(0, |_| target.shape.bit_groups())])
            .flag(self.bias.is_some())
            .flag(block.is_some())
            .flag(border.is_some())
            .flag(norm.is_some())
            .flag(own.relu)
            .floats([EPSILON as f32])
            .launch(self.grid(tile, target.shape, target.channels()))
    }

    /// The input gradient of a 3x3 kernel, and of a residual block's shortcut.
    fn launch_backward_input(&self, launcher: &mut Launcher, tile: &Tile, block: Option<&Masked>) -> Result<()> {
        let (target, own, mut source, mut groups) = (self.target, &self.epilogue, self.source, 0);
        assert!(self.bias.is_none() && !own.relu, "a gradient has neither bias nor ReLU");
        if let Some(Masked { positive, .. }) = block {
            if masks(source.shape) {
                groups = source.shape.bit_groups();
            } else {
                source = mask_into(launcher, 0, source, *positive)?;
            }
        }
        let none = self.weight.unused(Element::F32);
        let (added, added_stride) = self.optional(own.affine.map_or(own.added, |affine| Some(affine.x)));
        let (mask, mask_stride) = self.optional(own.mask);
        let [scale, offset] =
            own.affine.map_or([none; 2], |affine| [affine.scale, affine.offset].map(|terms| terms.pointer));
        let positive = |pointer: Pointer| if groups > 0 { pointer } else { pointer.unused(Element::Bits) };
        let dout = self.source;
        let pointers = block.map(|block| [positive(block.positive.pointer), dout.pointer, block.shortcut]);
        let kernel = match block {
            Some(_) => tile.residual_backward_input.expect("a 3x3 tile has one"),
            None => tile.backward_input,
        };
        let shared = tile.shared(false) + tile.source_pixels() * groups; // a byte for each group of each pixel
        assert!(shared <= launcher.shared_memory(), "{groups} groups of bits have room");
        let [_, height, width] = target.shape.spatial;
        launcher
            .kernel(kernel)
            .shared(shared)
            .pointers([target.pointer, source.pointer, self.weight, added, scale, offset, mask])
            .pointers(pointers.into_iter().flatten())
            .sizes([height, width, source.channels(), target.channels(), target.stride, source.stride])
            .sizes([added_stride, mask_stride])
            .sizes(block.map(|_| [groups, dout.stride]).into_iter().flatten())
            .flag(own.affine.is_some())
            .launch(self.grid(tile, target.shape, target.channels()))
    }

    /// A 1x1 kernel.
    fn launch_patches(
        &self,
        launcher: &mut Launcher,
        tile: &Tile,
        kernel: Kernel,
        small: &Shape,
        columns: usize,
    ) -> Result<()> {
        let (target, source, own) = (self.target, self.source, &self.epilogue);
        assert!(own.affine.is_none() || self.bias.is_none(), "an offset is a bias");
        let (added, added_stride) = self.optional(own.affine.map_or(own.added, |affine| Some(affine.x)));
        let (mask, mask_stride) = self.optional(own.mask);
        let none = self.weight.unused(Element::F32);
        let bias = own.affine.map_or(self.bias, |affine| Some((affine.offset.pointer, affine.offset.channels())));
        let (bias, biases) = bias.unwrap_or((none, 0));
        let backward = kernel == tile.backward_input;
        let launch = launcher
            .kernel(kernel)
            .pointers([target.pointer, source.pointer, self.weight, bias, added])
            .pointers([own.affine.map_or(none, |affine| affine.scale.pointer)])
            .pointers(backward.then_some(mask))
            .sizes([small.spatial[1], small.spatial[2]])
            .sizes(self.form.window())
            .sizes([source.channels(), columns, target.stride, source.stride, added_stride])
            .sizes(backward.then_some(mask_stride))
            .sizes([biases])
            .flag(own.affine.is_some())
            .shared(tile.shared(backward));
        let launch = if backward { launch } else { launch.flag(own.relu) };
        launch.launch(self.grid(tile, small, columns))
    }
}

// ------------------------------------------------------------------ weight gradient

/// Groups of warps to make of all tiles and shares at most: two for each multiprocessor of the largest GPUs, which a few more
/// would keep waiting.
const GROUPS: usize = 264;
/// Patches of a share at least, which pay for adding its sums.
const SHARE_PATCHES: usize = 4;
/// A residual block's output channels have to come in so many: the bits of a tile's are copied at once, 4 bytes or 8.
const RESIDUAL_CHANNELS: usize = 32;
/// All parts' sums together have at most this many elements, 64 MiB, if there are several.
const PART_ELEMENTS: usize = 1 << 24;

/// A block's input and output channels: `WeightTile` in the kernels.
struct WeightTile {
    kernel: Kernel,
    /// The kernel of a residual block's two convolutions.
    residual: Option<Kernel>,
    size: usize,
    inputs: usize,
    columns: usize,
}

const SAME_32X64: WeightTile = WeightTile {
    kernel: CONVOLUTION_BACKWARD_WEIGHT_3X3_32X64,
    residual: Some(RESIDUAL_BACKWARD_WEIGHT_3X3_32X64),
    size: 3,
    inputs: 32,
    columns: 64,
};
const SAME_32X32: WeightTile = WeightTile {
    kernel: CONVOLUTION_BACKWARD_WEIGHT_3X3_32X32,
    residual: Some(RESIDUAL_BACKWARD_WEIGHT_3X3_32X32),
    size: 3,
    inputs: 32,
    columns: 32,
};
const PATCHES_64X64: WeightTile =
    WeightTile { kernel: CONVOLUTION_BACKWARD_WEIGHT_1X1_64X64, residual: None, size: 1, inputs: 64, columns: 64 };
const PATCHES_32X32: WeightTile =
    WeightTile { kernel: CONVOLUTION_BACKWARD_WEIGHT_1X1_32X32, residual: None, size: 1, inputs: 32, columns: 32 };

impl WeightTile {
    fn choose(form: Form, narrow: bool) -> &'static WeightTile {
        match (form, narrow) {
            (Form::Same3, true) => &SAME_32X32,
            (Form::Same3, false) => &SAME_32X64,
            (Form::Patches(_), true) => &PATCHES_32X32,
            (Form::Patches(_), false) => &PATCHES_64X64,
        }
    }

    /// Tiles of taps and input channels, and of output channels.
    fn tiles(&self, form: Form, inputs: usize, outputs: usize) -> [usize; 2] {
        let taps = form.window().iter().product::<usize>();
        [taps * inputs.div_ceil(self.inputs), outputs.div_ceil(self.columns)]
    }

    /// Bytes of shared memory of a group of warps.
    fn shared(&self, has_bits: bool) -> usize {
        let x_pixels = (WEIGHT_PATCH_ROWS + self.size - 1) * (PATCH_WIDTH + self.size - 1);
        let pixels = WEIGHT_PATCH_ROWS * PATCH_WIDTH;
        let operands = x_pixels * (self.inputs + PIECE) + pixels * (self.columns + PIECE);
        2 * (operands * ELEMENT + if has_bits { pixels * self.columns / CHANNEL_ALIGNMENT } else { 0 })
    }
}

/// How the pixels of a weight gradient are shared out: by shape alone, as the order of the sum depends on it; which shares are
/// added to each other first depends on the shared memory of devices of this kind. `dout` is the small image, `x` the large one.
pub(in crate::ops) struct TensorWeights {
    form: Form,
    narrow: bool,
    patches: usize,
    share_patches: usize,
    /// Groups of warps that have a share each: as many parts at most.
    pub shares: usize,
}

impl TensorWeights {
    pub(in crate::ops) fn new(form: Form, dout: &Shape, x: &Shape) -> Self {
        let (inputs, outputs) = (x.channels.stored(), dout.channels.stored());
        let narrow = (1..=32).contains(&(outputs % 64));
        let groups: usize = WeightTile::choose(form, narrow).tiles(form, inputs, outputs).iter().product();
        let patches = patches(dout, WEIGHT_PATCH_ROWS, PATCH_WIDTH);
        let elements = form.taps() * inputs * outputs;
        let most_shares = patches.div_ceil(SHARE_PATCHES).min((PART_ELEMENTS / elements).max(1));
        let shares = (GROUPS / groups).clamp(1, most_shares);
        let share_patches = patches.div_ceil(shares);
        TensorWeights { form, narrow, patches, share_patches, shares: patches.div_ceil(share_patches) }
    }

    /// Computes the gradients of the weights, and of the bias, if there is one.
    pub(in crate::ops) fn launch(
        &self,
        launcher: &mut Launcher,
        gradients: &[Operand],
        [dout, x]: [Operand; 2],
        bias: BiasOf,
    ) -> Result<()> {
        let tile = self.tile(launcher);
        assert!(bias != BiasOf::Taps || tile.size == 1, "3x3 kernels know no bias of taps");
        let blocks = self.blocks(launcher, tile, tile.shared(false));
        let sums = Sums::new(launcher, gradients, blocks.parts);
        launcher
            .kernel(tile.kernel)
            .pointers([sums.parts(0), sums.parts_if_any(1), dout.pointer, x.pointer])
            .sizes(dout.shape.spatial[1..].iter().copied())
            .sizes(self.form.window())
            .sizes([x.channels(), dout.channels(), dout.stride, x.stride, self.patches, self.share_patches])
            .sizes([bias as usize])
            .shared(blocks.shared)
            .launch(blocks.grid(tile.tiles(self.form, x.channels(), dout.channels())))?;
        sums.launch(launcher)
    }

    /// Computes those of a residual block, if there is a kernel for that: of the 3x3 convolution's weights and bias, and of the
    /// 1x1 convolution's, whose output gradient is `dout`. Returns whether there is.
    pub(in crate::ops) fn launch_residual(
        &self,
        launcher: &mut Launcher,
        gradients: &[Operand; 4],
        [dout, x, positive]: [Operand; 3],
    ) -> Result<bool> {
        let tile = self.tile(launcher);
        let whole = dout.channels().is_multiple_of(RESIDUAL_CHANNELS);
        let Some(kernel) = tile.residual.filter(|_| whole && launcher.capability() >= AMPERE) else { return Ok(false) };
        assert!(dout.channels().is_multiple_of(tile.columns), "tiles of 64 are not chosen for an odd number of 32s");
        let blocks = self.blocks(launcher, tile, tile.shared(true));
        let sums = Sums::new(launcher, gradients, blocks.parts);
        launcher
            .kernel(kernel)
            .pointers([0, 1, 2, 3].map(|index| sums.parts(index)))
            .pointers([dout, x, positive].map(|operand| operand.pointer))
            .sizes(dout.shape.spatial[1..].iter().copied())
            .sizes([x.channels(), dout.channels(), dout.stride, x.stride, dout.shape.bit_groups()])
            .sizes([self.patches, self.share_patches])
            .shared(blocks.shared)
            .launch(blocks.grid(tile.tiles(self.form, x.channels(), dout.channels())))?;
        sums.launch(launcher)?;
        Ok(true)
    }

    fn tile(&self, launcher: &Launcher) -> &'static WeightTile {
        // On sm_75 a block has not enough shared memory for the wide tiles.
        WeightTile::choose(self.form, self.narrow || launcher.capability() < AMPERE)
    }

    /// The blocks for shares that take so much shared memory each.
    fn blocks(&self, launcher: &Launcher, tile: &WeightTile, shared: usize) -> WeightBlocks {
        let most = if tile.size > 1 { MOST_GROUPS.min(launcher.shared_memory() / shared) } else { 1 };
        let groups = most.min(self.shares);
        WeightBlocks { groups, parts: self.shares.div_ceil(groups), shared: groups * shared }
    }
}

/// The blocks of a weight gradient: each has some groups of warps, and adds what they have to a part.
struct WeightBlocks {
    groups: usize,
    parts: usize,
    /// Bytes of a block's shared memory.
    shared: usize,
}

impl WeightBlocks {
    fn grid(&self, [input_tiles, output_tiles]: [usize; 2]) -> Grid {
        Grid::new([input_tiles, output_tiles, self.parts], self.groups * TENSOR_THREADS)
    }
}
