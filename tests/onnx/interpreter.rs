//! An interpreter of the operators that the networks need, as plain as their definitions.

use crate::protobuf::Message;
use std::collections::HashMap;

#[derive(Debug, Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    fn zeros(shape: &[usize]) -> Self {
        Tensor { shape: shape.to_vec(), values: vec![0.0; shape.iter().product()] }
    }

    /// Batch, channels, height and width of an image.
    fn image(&self) -> [usize; 4] {
        self.shape[..].try_into().unwrap()
    }

    fn index(&self, place: [usize; 4]) -> usize {
        place.iter().zip(&self.shape).fold(0, |index, (place, length)| index * length + place)
    }

    fn at(&self, place: [usize; 4]) -> f32 {
        self.values[self.index(place)]
    }
}

/// All places of a shape, the last axis fastest.
fn places([n, c, h, w]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..n * c * h * w).map(move |i| [i / (c * h * w), i / (h * w) % c, i / w % h, i % w])
}

fn filled(shape: [usize; 4], value: impl Fn([usize; 4]) -> f32) -> Tensor {
    Tensor { shape: shape.to_vec(), values: places(shape).map(value).collect() }
}

/// Runs a graph on one image.
pub fn interpret(graph: Message, image: Tensor) -> Tensor {
    let mut known: HashMap<String, Tensor> = HashMap::from([("image".to_string(), image)]);
    for tensor in graph.messages(5) {
        let shape = tensor.ints(1).into_iter().map(|length| length as usize).collect();
        let values = tensor.message(9).0.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        known.insert(tensor.text(8), Tensor { shape, values });
    }
    for node in graph.messages(1) {
        let inputs: Vec<&Tensor> = node.texts(1).iter().map(|name| &known[name]).collect();
        let attributes: HashMap<String, Message> =
            node.messages(5).into_iter().map(|attribute| (attribute.text(1), attribute)).collect();
        let outputs = run(&node.text(4), &inputs, &attributes);
        let names = node.texts(2);
        assert_eq!(names.len(), outputs.len());
        known.extend(names.into_iter().zip(outputs));
    }
    known.remove("probability").unwrap()
}

fn run(op: &str, inputs: &[&Tensor], attributes: &HashMap<String, Message>) -> Vec<Tensor> {
    let lengths = |name: &str| -> Vec<usize> { attributes[name].ints(8).into_iter().map(|i| i as usize).collect() };
    let int = |name: &str| attributes[name].ints(3)[0] as usize;
    let x = inputs[0];
    let each = |f: fn(f32) -> f32| Tensor { values: x.values.iter().map(|&v| f(v)).collect(), ..x.clone() };
    // A map of one pixel or one channel is repeated.
    let both = |f: fn(f32, f32) -> f32| {
        let y = inputs[1];
        let repeated = |place: [usize; 4]| std::array::from_fn(|axis| place[axis].min(y.shape[axis] - 1));
        filled(x.image(), |place| f(x.at(place), y.at(repeated(place))))
    };
    vec![match op {
        "Relu" => each(|v| v.max(0.0)),
        "Sigmoid" => each(|v| 1.0 / (1.0 + (-v).exp())),
        "Identity" => x.clone(),
        "Add" => both(|a, b| a + b),
        "Mul" => both(|a, b| a * b),
        "Conv" => {
            assert_eq!((int("group"), lengths("strides")), (1, vec![1, 1]));
            convolution(x, inputs[1], inputs.get(2).copied(), &lengths("pads"))
        }
        "ConvTranspose" => {
            assert_eq!(lengths("kernel_shape"), lengths("strides"));
            upsampled(x, inputs[1], inputs[2], lengths("strides")[0])
        }
        "MaxPool" => {
            assert_eq!(
                (lengths("kernel_shape"), lengths("strides"), lengths("pads")),
                (vec![2; 2], vec![2; 2], vec![0; 4])
            );
            let [n, c, h, w] = x.image();
            let corners = [(0, 0), (0, 1), (1, 0), (1, 1)];
            filled([n, c, h / 2, w / 2], |[n, c, y, z]| {
                corners.map(|(i, j)| x.at([n, c, 2 * y + i, 2 * z + j])).into_iter().fold(f32::MIN, f32::max)
            })
        }
        "BatchNormalization" => {
            let epsilon = attributes["epsilon"].floats(2)[0];
            let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| &inputs[i].values);
            filled(x.image(), |place| {
                let c = place[1];
                (x.at(place) - mean[c]) / (variance[c] + epsilon).sqrt() * gamma[c] + beta[c]
            })
        }
        "Concat" => concatenated(inputs, int("axis")),
        "ReduceMean" | "ReduceMax" => {
            assert_eq!(int("keepdims"), 1);
            reduced(x, &lengths("axes"), op == "ReduceMax")
        }
        "Split" => {
            assert_eq!(int("axis"), 0);
            let [n, c, h, w] = x.image();
            return [0, n / 2]
                .map(|first| filled([n / 2, c, h, w], |[n, c, y, x0]| x.at([first + n, c, y, x0])))
                .to_vec();
        }
        _ => panic!("no operator {op}"),
    }]
}

fn convolution(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, pads: &[usize]) -> Tensor {
    let ([n, inputs, h, w], [outputs, expected, kh, kw]) = (x.image(), weight.image());
    assert_eq!((inputs, pads), (expected, &[kh / 2, kw / 2, kh / 2, kw / 2][..]));
    filled([n, outputs, h, w], |[n, o, y, z]| {
        let mut sum = bias.map_or(0.0, |bias| f64::from(bias.values[o]));
        for [_, i, dy, dz] in places([1, inputs, kh, kw]) {
            let (y, z) = ((y + dy).wrapping_sub(kh / 2), (z + dz).wrapping_sub(kw / 2));
            if y < h && z < w {
                sum += f64::from(x.at([n, i, y, z])) * f64::from(weight.at([o, i, dy, dz]));
            }
        }
        sum as f32
    })
}

fn upsampled(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize) -> Tensor {
    let ([n, inputs, h, w], [_, outputs, ..]) = (x.image(), weight.image());
    filled([n, outputs, stride * h, stride * w], |[n, o, y, z]| {
        let product = |i| x.at([n, i, y / stride, z / stride]) * weight.at([i, o, y % stride, z % stride]);
        bias.values[o] + (0..inputs).map(product).sum::<f32>()
    })
}

fn concatenated(parts: &[&Tensor], axis: usize) -> Tensor {
    let mut shape = parts[0].image();
    shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
    filled(shape, |mut place| {
        for part in parts {
            if place[axis] < part.shape[axis] {
                return part.at(place);
            }
            place[axis] -= part.shape[axis];
        }
        unreachable!()
    })
}

fn reduced(x: &Tensor, axes: &[usize], largest: bool) -> Tensor {
    let mut shape = x.image();
    axes.iter().for_each(|&axis| shape[axis] = 1);
    let mut result = Tensor::zeros(&shape);
    result.values.fill(if largest { f32::MIN } else { 0.0 });
    let count = (x.values.len() / result.values.len()) as f32;
    for place in places(x.image()) {
        let index = result.index(std::array::from_fn(|axis| place[axis].min(shape[axis] - 1)));
        let value = &mut result.values[index];
        *value = if largest { value.max(x.at(place)) } else { *value + x.at(place) / count };
    }
    result
}
