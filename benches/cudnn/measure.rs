//! A convolution by this crate and by cuDNN, timed in the same way on the same stream.

use crate::case::{Case, Loaded, Values};
use crate::library::{Algorithm, Convolution, Cudnn, Geometry, Of, Primitive};
use crate::timer::{Room, Timer, launch};
use rarunet_cuda::device::Device;
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::kernels::Element;
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::tensor::{Shape, Storage};

/// Of cuDNN's algorithms, so many of the fastest are timed.
const TRIED: usize = 3;
/// Tensors start at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Seconds of one run, and what it computed, as [`Values`] have it.
pub struct Measured {
    pub seconds: f64,
    pub result: Vec<f32>,
    pub note: Option<String>,
}

/// This crate's kernels, as a step launches them.
pub fn ours(
    device: &mut CudaDevice,
    timer: &Timer,
    case: &Case,
    values: &Values,
    sets: usize,
) -> rarunet_cuda::Result<Measured> {
    let failed = |message| rarunet_cuda::Error::Invalid(message);
    let loaded = Loaded::new(device, case, values, sets)?;
    let step = loaded.step;
    for input in 0..2 {
        let first = loaded.sets[0][input];
        let shape = device.plan(step).shape(first);
        let bytes = shape.elements() * device.precision().element(shape.storage).bytes();
        for set in &loaded.sets[1..] {
            let (to, from) = (device.address(step, set[input]), device.address(step, first));
            // SAFETY: both are the step's inputs of that many bytes.
            unsafe { timer.copy(to, from, bytes) }.map_err(failed)?;
        }
    }
    device.run(step)?;
    let result = loaded.result(device, case)?;
    device.run(step)?; // captures
    let seconds = timer.seconds(|| device.run(step).map_err(|error| error.to_string())).map_err(failed)?;
    Ok(Measured { seconds: seconds / sets as f64, result, note: None })
}

/// Where a tensor's channels stand in cuDNN's.
struct Side {
    stored: usize,
    places: Vec<usize>,
}

impl Side {
    /// Of the channels alone, or padded as this crate stores them.
    fn new(shape: &Shape, padded: bool) -> Self {
        match padded {
            true => Side { stored: shape.channels.stored(), places: shape.channels.stored_indices().collect() },
            false => Side { stored: shape.channels.count(), places: (0..shape.channels.count()).collect() },
        }
    }

    fn spread(&self, values: &[f32]) -> Vec<f32> {
        let mut stored = vec![0.0; values.len() / self.places.len() * self.stored];
        for (pixel, values) in stored.chunks_exact_mut(self.stored).zip(values.chunks_exact(self.places.len())) {
            self.places.iter().zip(values).for_each(|(&place, &value)| pixel[place] = value);
        }
        stored
    }

    fn gather(&self, stored: &[f32]) -> Vec<f32> {
        stored.chunks_exact(self.stored).flat_map(|pixel| self.places.iter().map(|&place| pixel[place])).collect()
    }
}

/// Where each of cuDNN's weights (the map's channels, taps, the image's channels) stands in [`Values`].
fn weight_places<'a>(taps: usize, image: &'a Side, map: &'a Side) -> impl Iterator<Item = (usize, usize)> + 'a {
    let (inputs, outputs) = (image.places.len(), map.places.len());
    (0..outputs).flat_map(move |output| {
        (0..taps).flat_map(move |tap| {
            (0..inputs).map(move |input| {
                let theirs = (map.places[output] * taps + tap) * image.stored + image.places[input];
                (theirs, (tap * inputs + input) * outputs + output)
            })
        })
    })
}

/// The tensors of a case in cuDNN's layout, several times.
struct Tensors<'a> {
    case: &'a Case,
    element: Element,
    image: Side,
    map: Side,
    rooms: Of<Room>,
    bytes: Of<usize>,
}

impl<'a> Tensors<'a> {
    fn new(
        timer: &Timer,
        case: &'a Case,
        values: &Values,
        element: Element,
        padded: bool,
        sets: usize,
    ) -> Result<Self, String> {
        let (image, map) = (Side::new(&case.image, padded), Side::new(&case.map, padded));
        let weights = case.window.taps() * image.stored * map.stored;
        let counts = [case.image.positions() * image.stored, case.map.positions() * map.stored, weights];
        let [image_bytes, map_bytes, weight_bytes] =
            counts.map(|count| (count * element.bytes()).next_multiple_of(ALIGNMENT));
        let bytes = Of { image: image_bytes, map: map_bytes, weight: weight_bytes };
        let room = |bytes: usize| timer.room(bytes * sets);
        let mut rooms = Of { image: room(bytes.image)?, map: room(bytes.map)?, weight: room(bytes.weight)? };
        // All but the result.
        if case.primitive != Primitive::BackwardFilter {
            let mut weight = vec![0.0; weights];
            let places = weight_places(case.window.taps(), &image, &map);
            places.for_each(|(theirs, ours)| weight[theirs] = values.0.weight[ours]);
            timer.write(&mut rooms.weight, 0, &element.encode(&weight))?;
        }
        if case.primitive != Primitive::BackwardData {
            timer.write(&mut rooms.image, 0, &element.encode(&image.spread(&values.0.image)))?;
        }
        if case.primitive != Primitive::Forward {
            timer.write(&mut rooms.map, 0, &element.encode(&map.spread(&values.0.map)))?;
        }
        for (room, bytes) in [(&rooms.image, bytes.image), (&rooms.map, bytes.map), (&rooms.weight, bytes.weight)] {
            for set in 1..sets {
                // SAFETY: the room has that many bytes for each set.
                unsafe { timer.copy(room.address() + (set * bytes) as u64, room.address(), bytes) }?;
            }
        }
        Ok(Tensors { case, element, image, map, rooms, bytes })
    }

    fn addresses(&self, set: usize) -> Of<u64> {
        let at = |room: &Room, bytes: usize| room.address() + (set * bytes) as u64;
        let (rooms, bytes) = (&self.rooms, self.bytes);
        Of {
            image: at(&rooms.image, bytes.image),
            map: at(&rooms.map, bytes.map),
            weight: at(&rooms.weight, bytes.weight),
        }
    }

    fn geometry(&self) -> Geometry {
        let size = |shape: &Shape, side: &Side| [shape.spatial[1], shape.spatial[2], side.stored];
        Geometry {
            element: self.element,
            window: self.case.window,
            batch: self.case.image.batch,
            image: size(&self.case.image, &self.image),
            map: size(&self.case.map, &self.map),
        }
    }

    /// The result of the first set.
    fn result(&self, timer: &Timer) -> Result<Vec<f32>, String> {
        let read = |room: &Room, count: usize| -> Result<Vec<f32>, String> {
            let mut bytes = vec![0; count * self.element.bytes()];
            timer.read(room, 0, &mut bytes)?;
            Ok(self.element.decode(&bytes))
        };
        let Tensors { case, image, map, rooms, .. } = self;
        let taps = case.window.taps();
        Ok(match case.primitive {
            Primitive::Forward => map.gather(&read(&rooms.map, case.map.positions() * map.stored)?),
            Primitive::BackwardData => image.gather(&read(&rooms.image, case.image.positions() * image.stored)?),
            Primitive::BackwardFilter => {
                let stored = read(&rooms.weight, taps * image.stored * map.stored)?;
                let mut found = vec![0.0; taps * image.places.len() * map.places.len()];
                weight_places(taps, image, map).for_each(|(theirs, ours)| found[ours] = stored[theirs]);
                found
            }
        })
    }
}

/// The seconds of a run by an algorithm.
fn time(
    timer: &Timer,
    convolution: &Convolution,
    algorithm: Algorithm,
    tensors: &Tensors,
    sets: usize,
) -> Result<(f64, Option<String>), String> {
    let primitive = tensors.case.primitive;
    let all = || {
        // SAFETY: the tensors are of the descriptors' sizes.
        (0..sets).try_for_each(|set| unsafe { convolution.run(primitive, algorithm, tensors.addresses(set)) })
    };
    all()?; // what it loads at first, a capture forbids
    timer.synchronize()?;
    match timer.capture(all) {
        Ok(graph) => Ok((timer.seconds(|| launch(&graph))? / sets as f64, None)),
        Err(error) => Ok((timer.seconds(all)? / sets as f64, Some(format!("cuDNN launched one by one: {error}")))),
    }
}

/// cuDNN's fastest algorithm on tensors with padded channels or without.
fn theirs_on(cudnn: &Cudnn, timer: &Timer, tensors: &Tensors, sets: usize) -> Result<Measured, String> {
    let convolution = cudnn.convolution(&tensors.geometry())?;
    // SAFETY: the tensors are of the descriptors' sizes.
    let found = unsafe { convolution.find(tensors.case.primitive, tensors.addresses(0)) }?;
    let mut best: Option<Measured> = None;
    let mut error = "cuDNN has no algorithm".to_owned();
    for &algorithm in found.iter().take(TRIED) {
        match time(timer, &convolution, algorithm, tensors, sets) {
            Ok((seconds, note)) if best.as_ref().is_none_or(|best| seconds < best.seconds) => {
                best = Some(Measured { seconds, result: tensors.result(timer)?, note });
            }
            Ok(_) => {}
            Err(message) => error = message,
        }
    }
    best.ok_or(error)
}

/// cuDNN with the case's channels; where this crate pads them, with padded ones if that is faster or all that works.
pub fn theirs(
    cudnn: &Cudnn,
    timer: &Timer,
    case: &Case,
    values: &Values,
    element: Element,
    sets: usize,
) -> Result<Measured, String> {
    let measure = |padded: bool| {
        let tensors = Tensors::new(timer, case, values, element, padded, sets)?;
        theirs_on(cudnn, timer, &tensors, sets)
    };
    let plain = measure(false);
    let counts = |shape: &Shape| (shape.channels.count(), shape.channels.stored());
    let pads = [&case.image, &case.map].map(counts).iter().any(|(count, stored)| count != stored);
    if !pads {
        return plain;
    }
    let note = |text: String, measured: Measured| {
        let note = measured.note.map_or(text.clone(), |note| format!("{text}; {note}"));
        Measured { note: Some(note), ..measured }
    };
    match (plain, measure(true)) {
        (Ok(plain), Ok(padded)) if padded.seconds < plain.seconds => {
            Ok(note(format!("cuDNN on padded channels; {:.1} us without", plain.seconds * 1e6), padded))
        }
        (Err(error), Ok(padded)) => Ok(note(format!("cuDNN on padded channels; without: {error}"), padded)),
        (plain, _) => plain,
    }
}

/// What the device reaches: bytes a second of a large copy, and operations a second of cuDNN's largest product.
pub fn ceilings(cudnn: Option<&Cudnn>, timer: &Timer, element: Element) -> Result<(f64, Option<f64>), String> {
    const COPIED: usize = 512 << 20;
    let room = timer.room(2 * COPIED)?;
    let copied = timer.seconds(|| {
        // SAFETY: the room has twice as many bytes.
        unsafe { timer.copy(room.address() + COPIED as u64, room.address(), COPIED) }
    })?;
    let product = |cudnn: &Cudnn| -> Result<f64, String> {
        let shape = Shape::image(8, 32, 32, 4096);
        let case = Case {
            direction: crate::case::DIRECTIONS[0],
            transposed: false,
            primitive: Primitive::Forward,
            window: Window::same(1),
            image: shape.clone(),
            map: shape,
        };
        debug_assert_eq!(case.image.storage, Storage::Reduced);
        let values = Values::new(&case);
        let tensors = Tensors::new(timer, &case, &values, element, false, 1)?;
        Ok(case.operations() as f64 / theirs_on(cudnn, timer, &tensors, 1)?.seconds)
    };
    Ok((2.0 * COPIED as f64 / copied, cudnn.and_then(|cudnn| product(cudnn).ok())))
}
