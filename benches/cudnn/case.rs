//! The convolutions of RAR-U-Net's training step, what each reads, and the graph that computes it alone.

use crate::layout::{Side, made_pixels};
use crate::library::{Of, Primitive};
use crate::timer::Timer;
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::{Graph, ValueId};
use rarunet_cuda::model::{Mode, Model};
use rarunet_cuda::ops::convolution::{BiasOf, Convolution, ConvolutionWeightGradient};
use rarunet_cuda::ops::transposed_convolution::TransposedConvolution;
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::plan::{Plan, shapes};
use rarunet_cuda::tensor::{Shape, Storage};
use std::any::Any;

/// A convolution in one direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// `forward`, `input gradient` or `weight gradient`, of the network's op.
    pub direction: &'static str,
    /// Whether that op is the transposed convolution, which computes the image from the map.
    pub transposed: bool,
    pub primitive: Primitive,
    pub window: Window,
    /// What the window moves over.
    pub image: Shape,
    pub map: Shape,
}

pub const DIRECTIONS: [&str; 3] = ["forward", "input gradient", "weight gradient"];

impl Case {
    /// The convolution of a node of a step, if it is one of 3x3, 1x1 or 2x2.
    fn of(plan: &Plan, index: usize) -> Option<Case> {
        let op = &*plan.graph.nodes()[index].op;
        let (inputs, outputs) = shapes(&plan.graph, index);
        let patch = Window::square(2, 2, 0);
        let any: &dyn Any = op;
        let (direction, primitive, window, image, map) = match op.name() {
            "convolution" => {
                let window = any.downcast_ref::<Convolution>()?.window;
                let direction = if window == patch { DIRECTIONS[1] } else { DIRECTIONS[0] };
                (direction, Primitive::Forward, window, inputs[0], outputs[0])
            }
            "residual" => (DIRECTIONS[0], Primitive::Forward, Window::same(3), inputs[0], outputs[0]),
            "transposed_convolution" => (DIRECTIONS[0], Primitive::BackwardData, patch, outputs[0], inputs[0]),
            "convolution_input_gradient" => {
                let taps = inputs[1].positions() / outputs[0].channels.stored();
                (DIRECTIONS[1], Primitive::BackwardData, Window::same(taps.isqrt()), outputs[0], inputs[0])
            }
            "residual_weight_gradient" => {
                (DIRECTIONS[2], Primitive::BackwardFilter, Window::same(3), inputs[1], inputs[0])
            }
            "convolution_weight_gradient" => {
                let window = any.downcast_ref::<ConvolutionWeightGradient>()?.window;
                (DIRECTIONS[2], Primitive::BackwardFilter, window, inputs[1], inputs[0])
            }
            _ => return None,
        };
        let (image, map) = (image.clone(), map.clone());
        (window.taps() <= 9).then_some(Case { direction, transposed: window == patch, primitive, window, image, map })
    }

    /// All of a step, each once, with how many there are; those with the most operations in a step first.
    pub fn all(widths: [usize; 5], batch: usize, size: usize) -> rarunet_cuda::Result<Vec<(Case, usize)>> {
        let mut step = Model::new("rar-unet", widths)?.graph(Mode::Train, batch, [size; 2])?;
        let kept = step.kept();
        let plan = Plan::new(std::mem::take(&mut step.graph), &kept, false, |_| size_of::<f32>(), |_| 0);
        let mut cases: Vec<(Case, usize)> = Vec::new();
        for case in plan.nodes.iter().filter_map(|node| Case::of(&plan, node.index)) {
            match cases.iter_mut().find(|(known, _)| *known == case) {
                Some((_, count)) => *count += 1,
                None => cases.push((case, 1)),
            }
        }
        cases.sort_by_key(|(case, count)| std::cmp::Reverse(*count as u64 * case.operations()));
        Ok(cases)
    }

    /// Whether both images are stored in full, as CBAM's shared MLP's are.
    fn is_full(&self) -> bool {
        [&self.image, &self.map].iter().all(|shape| shape.storage == Storage::Full)
    }

    fn convolution(&self) -> Convolution {
        Convolution { out: self.map.channels.clone(), full: self.is_full(), ..Convolution::new(self.window, 1) }
    }

    /// The weights' shape; their gradient is stored in full.
    fn weight(&self) -> Shape {
        let shape = self.convolution().weight_shape(&self.image.channels);
        if self.primitive == Primitive::BackwardFilter { shape.stored_in(Storage::Full) } else { shape }
    }

    /// Floating-point operations, a multiply-add counting two.
    pub fn operations(&self) -> u64 {
        let products = self.window.taps() * self.image.channels.count() * self.map.channels.count();
        2 * (products * self.map.positions()) as u64
    }

    /// Bytes of image, map and weights as this crate stores them.
    pub fn bytes(&self, precision: Precision) -> u64 {
        let bytes = |shape: &Shape| shape.elements() * precision.element(shape.storage).bytes();
        [&self.image, &self.map, &self.weight()].into_iter().map(bytes).sum::<usize>() as u64
    }

    /// Which of image and map this crate stores in f32, in words.
    pub fn in_full(&self) -> Option<&'static str> {
        match [&self.image, &self.map].map(|shape| shape.storage == Storage::Full) {
            [false, false] => None,
            [true, false] => Some("our image in f32"),
            [false, true] => Some("our map in f32"),
            [true, true] => Some("ours in f32"),
        }
    }
}

/// What the tensors of a case hold, padding left out: of image and map the first pixels, which the others repeat; the
/// weights by tap, the image's channels, the map's channels.
pub struct Values(pub Of<Vec<f32>>);

impl Values {
    /// Pseudo-random values from -1 to 1; the weights such that results are of that size, too.
    pub fn new(case: &Case) -> Self {
        let mut state = 1u32;
        let mut some = |count: usize, scale: f32| -> Vec<f32> {
            let next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 * (2.0 / (1 << 24) as f32) - 1.0
            };
            std::iter::repeat_with(next).take(count).map(|value| value * scale).collect()
        };
        let (inputs, outputs) = (case.image.channels.count(), case.map.channels.count());
        let sums = case.window.taps() * inputs;
        let weight = some(sums * outputs, (sums as f32).sqrt().recip());
        let (image, map) = (made_pixels(&case.image) * inputs, made_pixels(&case.map) * outputs);
        Values(Of { image: some(image, 1.0), map: some(map, 1.0), weight })
    }

    /// The weights in rows of every stored channel.
    fn stored_weight(&self, case: &Case) -> Vec<f32> {
        let (stored, columns) = (case.image.channels.stored(), case.map.channels.count());
        let mut rows = vec![0.0; case.window.taps() * stored * columns];
        let mut values = self.0.weight.chunks_exact(columns);
        for tap in 0..case.window.taps() {
            for channel in case.image.channels.stored_indices() {
                let start = (tap * stored + channel) * columns;
                rows[start..start + columns].copy_from_slice(values.next().expect("as many rows as channels"));
            }
        }
        rows
    }
}

/// A case on the device, several times with tensors of their own.
pub struct Loaded {
    pub step: rarunet_cuda::device::StepId,
    /// Of each set: what is read, then the result.
    pub sets: Vec<[ValueId; 3]>,
    result: Shape,
}

impl Loaded {
    /// Loads `sets` of a case, and fills the first.
    pub fn new(
        device: &mut CudaDevice,
        timer: &Timer,
        case: &Case,
        values: &Values,
        sets: usize,
    ) -> rarunet_cuda::Result<Loaded> {
        let mut graph = Graph::new();
        let weight = case.convolution().weight_shape(&case.image.channels);
        let shapes = Of { image: &case.image, map: &case.map, weight: &weight }.order(case.primitive);
        let bias = (case.transposed && case.primitive == Primitive::BackwardData)
            .then(|| graph.input(Shape::vector(case.image.channels.clone())));
        let mut all = Vec::with_capacity(sets);
        for _ in 0..sets {
            let [a, b] = [0, 1].map(|input| graph.input(shapes[input].clone()));
            let result = match (case.primitive, bias) {
                (Primitive::Forward, _) => graph.apply_one(case.convolution(), &[a, b])?,
                (Primitive::BackwardData, Some(bias)) => {
                    let op = TransposedConvolution { kernel: case.window.kernel, out: case.image.channels.clone() };
                    graph.apply_one(op, &[b, a, bias])?
                }
                (Primitive::BackwardData, None) => {
                    let x = graph.input(case.image.clone());
                    let out = graph.apply_one(case.convolution(), &[x, a])?;
                    graph.differentiate(&[(out, b)], &[x])?[0].expect("the input influences the output")
                }
                (Primitive::BackwardFilter, _) => {
                    let op = ConvolutionWeightGradient { window: case.window, groups: 1, bias: BiasOf::Nothing };
                    graph.apply_one(op, &[b, a])?
                }
            };
            all.push([a, b, result]);
        }
        let result = graph.shape(all[0][2]).clone();
        let kept: Vec<ValueId> = all.iter().map(|set| set[2]).collect();
        let step = device.load(graph, &kept)?;
        let loaded = Loaded { step, sets: all, result };
        loaded.fill(device, timer, case, values)?;
        if let Some(bias) = bias {
            device.write(step, bias, &vec![0.0; case.image.channels.count()])?;
        }
        Ok(loaded)
    }

    fn fill(&self, device: &mut CudaDevice, timer: &Timer, case: &Case, values: &Values) -> rarunet_cuda::Result<()> {
        let Of { image, map, weight } = &values.0;
        let shapes = Of { image: Some(&case.image), map: Some(&case.map), weight: None }.order(case.primitive);
        let all = Of { image, map, weight }.order(case.primitive);
        for (input, &value) in self.sets[0][..2].iter().enumerate() {
            let Some(shape) = shapes[input] else {
                device.write(self.step, value, &values.stored_weight(case))?;
                continue;
            };
            let (element, address) = (device.precision().element(shape.storage), device.address(self.step, value));
            // SAFETY: the input is there.
            unsafe { Side::new(shape, true).fill(timer, element, address, all[input]) }
                .map_err(rarunet_cuda::Error::Invalid)?;
        }
        Ok(())
    }

    /// What of the first set's result is compared.
    pub fn result(&self, device: &mut CudaDevice, timer: &Timer, case: &Case) -> rarunet_cuda::Result<Vec<f32>> {
        if case.primitive != Primitive::BackwardFilter {
            let element = device.precision().element(self.result.storage);
            let address = device.address(self.step, self.sets[0][2]);
            // SAFETY: the result is there, in a place of its own.
            return unsafe { Side::new(&self.result, true).sample(timer, element, address) }
                .map_err(rarunet_cuda::Error::Invalid);
        }
        let mut found = vec![0.0; self.result.values()];
        device.read(self.step, self.sets[0][2], &mut found)?;
        let (stored, columns) = (case.image.channels.stored(), case.map.channels.count());
        let rows = (0..case.window.taps())
            .flat_map(|tap| case.image.channels.stored_indices().map(move |channel| tap * stored + channel));
        Ok(rows.flat_map(|row| found[row * columns..(row + 1) * columns].iter().copied()).collect())
    }
}
