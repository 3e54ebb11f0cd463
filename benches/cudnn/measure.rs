//! A convolution by this crate and by cuDNN, timed in the same way on the same stream.

use crate::case::{Case, Loaded, Values};
use crate::layout::{Side, weight_places};
use crate::library::{Algorithm, Convolution, Cudnn, Geometry, Of, Primitive};
use crate::timer::{Room, Timer, launch};
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::kernels::Element;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::tensor::{Shape, Storage};

/// Of cuDNN's algorithms, so many that it expects to be the fastest are timed,
const TRIED: usize = 4;
/// each once, and more often if that takes at most so many times as long as the best.
const CLOSE: f64 = 1.3;
/// Tensors start at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Seconds of one run, and what of its result is compared.
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
    let loaded = Loaded::new(device, timer, case, values, sets)?;
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
    let result = loaded.result(device, timer, case)?;
    device.run(step)?; // captures
    let seconds = timer.seconds(|| device.run(step).map_err(|error| error.to_string())).map_err(failed)?;
    Ok(Measured { seconds: seconds / sets as f64, result, note: None })
}

/// The tensors of a case in cuDNN's layout, several times.
struct Tensors<'a> {
    case: &'a Case,
    precision: Precision,
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
        precision: Precision,
        padded: bool,
        sets: usize,
    ) -> Result<Self, String> {
        let element = precision.element(Storage::Reduced);
        let (image, map) = (Side::new(&case.image, padded), Side::new(&case.map, padded));
        let weights = case.window.taps() * image.stored * map.stored;
        let counts = [image.elements(), map.elements(), weights];
        let [image_bytes, map_bytes, weight_bytes] =
            counts.map(|count| (count * element.bytes()).next_multiple_of(ALIGNMENT));
        let bytes = Of { image: image_bytes, map: map_bytes, weight: weight_bytes };
        let room = |bytes: usize| timer.room(bytes * sets);
        let rooms = Of { image: room(bytes.image)?, map: room(bytes.map)?, weight: room(bytes.weight)? };
        // SAFETY: the rooms have space for a tensor and more.
        unsafe {
            if case.primitive != Primitive::BackwardFilter {
                let mut weight = vec![0.0; weights];
                let places = weight_places(case.window.taps(), &image, &map);
                places.for_each(|(theirs, ours)| weight[theirs] = values.0.weight[ours]);
                timer.write(rooms.weight.address(), &element.encode(&weight))?;
            }
            image.fill(timer, element, rooms.image.address(), &values.0.image)?;
            map.fill(timer, element, rooms.map.address(), &values.0.map)?;
        }
        for (room, bytes) in [(&rooms.image, bytes.image), (&rooms.map, bytes.map), (&rooms.weight, bytes.weight)] {
            for set in 1..sets {
                // SAFETY: the room has that many bytes for each set.
                unsafe { timer.copy(room.address() + (set * bytes) as u64, room.address(), bytes) }?;
            }
        }
        Ok(Tensors { case, precision, element, image, map, rooms, bytes })
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
            precision: self.precision,
            window: self.case.window,
            batch: self.case.image.batch,
            image: size(&self.case.image, &self.image),
            map: size(&self.case.map, &self.map),
        }
    }

    /// What of the first set's result is compared.
    fn result(&self, timer: &Timer) -> Result<Vec<f32>, String> {
        let Tensors { case, element, image, map, rooms, .. } = self;
        // SAFETY: the tensors are there.
        match case.primitive {
            Primitive::Forward => unsafe { map.sample(timer, *element, rooms.map.address()) },
            Primitive::BackwardData => unsafe { image.sample(timer, *element, rooms.image.address()) },
            Primitive::BackwardFilter => {
                let taps = case.window.taps();
                let mut bytes = vec![0; taps * image.stored * map.stored * element.bytes()];
                unsafe { timer.read(rooms.weight.address(), &mut bytes) }?;
                let stored = element.decode(&bytes);
                let mut found = vec![0.0; taps * image.places.len() * map.places.len()];
                weight_places(taps, image, map).for_each(|(theirs, ours)| found[ours] = stored[theirs]);
                Ok(found)
            }
        }
    }
}

/// The seconds of a run by an algorithm; None if it takes much longer than the best so far.
fn time(
    timer: &Timer,
    convolution: &Convolution,
    algorithm: Algorithm,
    tensors: &Tensors,
    (sets, best): (usize, f64),
) -> Result<Option<(f64, Option<String>)>, String> {
    let primitive = tensors.case.primitive;
    let run = |set| {
        // SAFETY: the tensors are of the descriptors' sizes.
        unsafe { convolution.run(primitive, algorithm, tensors.addresses(set)) }
    };
    run(0)?; // what it loads at first, a capture forbids
    timer.synchronize()?;
    let mut note = None;
    let graph = timer.capture(|| (0..sets).try_for_each(run));
    let all = || match &graph {
        Ok(graph) => launch(graph),
        Err(_) => (0..sets).try_for_each(run),
    };
    if let Err(error) = &graph {
        note = Some(format!("cuDNN launched one by one: {error}"));
    }
    if timer.once(1, all)? / sets as f64 > CLOSE * best {
        return Ok(None);
    }
    Ok(Some((timer.seconds(all)? / sets as f64, note)))
}

/// cuDNN's fastest algorithm on tensors with padded channels or without.
fn theirs_on(cudnn: &Cudnn, timer: &Timer, tensors: &Tensors, sets: usize) -> Result<Measured, String> {
    let convolution = cudnn.convolution(&tensors.geometry())?;
    let primitive = tensors.case.primitive;
    let expected = match convolution.expected(primitive) {
        Ok(expected) if !expected.is_empty() => expected,
        // SAFETY: the tensors are of the descriptors' sizes.
        _ => unsafe { convolution.find(primitive, tensors.addresses(0)) }?,
    };
    let mut best: Option<(f64, Option<String>, Algorithm)> = None;
    let mut error = "cuDNN has no algorithm".to_owned();
    for &algorithm in expected.iter().take(TRIED) {
        let fastest = best.as_ref().map_or(f64::INFINITY, |best| best.0);
        match time(timer, &convolution, algorithm, tensors, (sets, fastest)) {
            Ok(Some((seconds, note))) if seconds < fastest => best = Some((seconds, note, algorithm)),
            Ok(_) => {}
            Err(message) => error = message,
        }
    }
    let (seconds, note, algorithm) = best.ok_or(error)?;
    // SAFETY: the tensors are of the descriptors' sizes.
    unsafe { convolution.run(primitive, algorithm, tensors.addresses(0)) }?;
    Ok(Measured { seconds, result: tensors.result(timer)?, note })
}

/// cuDNN with the case's channels; where this crate pads them, with padded ones if that is faster or all that works.
pub fn theirs(
    cudnn: &Cudnn,
    timer: &Timer,
    case: &Case,
    values: &Values,
    precision: Precision,
    sets: usize,
) -> Result<Measured, String> {
    let measure = |padded: bool| {
        let tensors = Tensors::new(timer, case, values, precision, padded, sets)?;
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
pub fn ceilings(cudnn: Option<&Cudnn>, timer: &Timer, precision: Precision) -> Result<(f64, Option<f64>), String> {
    const COPIED: usize = 512 << 20;
    let room = timer.room(2 * COPIED)?;
    let copied = timer.seconds(|| {
        // SAFETY: the room has twice as many bytes.
        unsafe { timer.copy(room.address() + COPIED as u64, room.address(), COPIED) }
    })?;
    let product = |cudnn: &Cudnn| -> Result<f64, String> {
        let shape = Shape::image(8, 64, 64, 2048);
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
        let tensors = Tensors::new(timer, &case, &values, precision, false, 1)?;
        Ok(case.operations() as f64 / theirs_on(cudnn, timer, &tensors, 1)?.seconds)
    };
    Ok((2.0 * COPIED as f64 / copied, cudnn.and_then(|cudnn| product(cudnn).ok())))
}
