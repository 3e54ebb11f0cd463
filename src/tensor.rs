//! Shapes and how channels are laid out. Tensors are channels-last: batch, depth, height, width, channels.
//!
//! A slice of a scan has depth 1; nothing here or in the graph knows whether a network is 2D or 3D.

use std::fmt;

/// Every slice of a concatenated buffer starts at a multiple of this many channels: 16 bytes at 16 bits.
pub const CHANNEL_ALIGNMENT: usize = 8;

/// The channels of a tensor: one or more segments, as concatenation left them.
///
/// Segments are stored one after the other, each padded with zeros to a multiple of [`CHANNEL_ALIGNMENT`],
/// so that a producer can write its segment in place and vector loads stay aligned: 33 = 1 + 32 channels
/// are stored as 40. New channels fewer than the alignment (a mask, an attention map) are compact: stored
/// without padding. Every op keeps the padding zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channels {
    segments: Vec<usize>,
    compact: bool,
}

impl Channels {
    /// One segment of `count` channels.
    pub fn new(count: usize) -> Self {
        Channels { segments: vec![count], compact: count < CHANNEL_ALIGNMENT }
    }

    /// The segments of all `parts`, in order, each of them padded.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a Channels>) -> Self {
        let segments = parts.into_iter().flat_map(|part| part.segments.iter().copied()).collect();
        Channels { segments, compact: false }
    }

    /// How many channels there are.
    pub fn count(&self) -> usize {
        self.segments.iter().sum()
    }

    /// How many channels are stored, padding included.
    pub fn stored(&self) -> usize {
        if self.compact { self.segments[0] } else { self.segments.iter().map(|&count| padded(count)).sum() }
    }

    /// Whether the channels are stored without padding because they are few.
    pub fn is_compact(&self) -> bool {
        self.compact
    }

    /// Whether the channels are one segment, so that all padding stands at the end.
    pub fn is_single(&self) -> bool {
        self.segments.len() == 1
    }

    /// How many stored channels, from the first, hold all that is not padding at the end.
    pub fn used(&self) -> usize {
        let last = self.segments[self.segments.len() - 1];
        if self.is_single() { last } else { self.stored() - padded(last) + last }
    }

    /// Where each channel is stored, in order.
    pub fn stored_indices(&self) -> impl Iterator<Item = usize> + '_ {
        let starts = self.segments.iter().scan(0, |start, &count| {
            let this = *start;
            *start += padded(count);
            Some((this, count))
        });
        starts.flat_map(|(start, count)| start..start + count)
    }
}

fn padded(count: usize) -> usize {
    count.next_multiple_of(CHANNEL_ALIGNMENT)
}

/// Which numbers a tensor is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// In f32 (f64 on a device that computes in it): parameters, statistics, sums, losses, and images of few channels.
    Full,
    /// In what the device's precision stores activations, their gradients and the weights that meet them in: 16 bits
    /// in bf16 and fp16.
    Reduced,
    /// Eight bits to an element, a byte: which of eight neighbouring stored channels are above zero. On the CPU each element is
    /// the byte's value.
    Bits,
}

impl Storage {
    /// How images of these channels are stored: few channels take little memory, and masks and maps need the digits.
    pub fn of_image(channels: &Channels) -> Self {
        if channels.is_compact() { Storage::Full } else { Storage::Reduced }
    }
}

/// The shape of a tensor, and which numbers it is stored in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    pub batch: usize,
    /// Depth, height, width.
    pub spatial: [usize; 3],
    pub channels: Channels,
    pub storage: Storage,
}

impl Shape {
    /// `batch` images of `height` x `width` pixels.
    pub fn image(batch: usize, height: usize, width: usize, channels: usize) -> Self {
        Shape::volume(batch, [1, height, width], Channels::new(channels))
    }

    /// `batch` volumes of depth, height and width.
    pub fn volume(batch: usize, spatial: [usize; 3], channels: Channels) -> Self {
        Shape { batch, spatial, storage: Storage::of_image(&channels), channels }
    }

    /// One value per channel.
    pub fn vector(channels: Channels) -> Self {
        Shape { batch: 1, spatial: [1; 3], channels, storage: Storage::Full }
    }

    /// `rows` rows of channels: a weight matrix.
    pub fn matrix(rows: usize, channels: Channels) -> Self {
        Shape { batch: 1, spatial: [1, 1, rows], channels, storage: Storage::Full }
    }

    /// `count` values side by side, without padding.
    pub fn flat(count: usize) -> Self {
        Shape::matrix(count, Channels::new(1))
    }

    /// Bits for all positions and stored channels of this shape: [`Shape::bit_groups`] elements a position.
    pub fn bits(&self) -> Self {
        Shape::flat(self.positions() * self.bit_groups()).stored_in(Storage::Bits)
    }

    /// Elements of [`Storage::Bits`] that a position's stored channels have.
    pub fn bit_groups(&self) -> usize {
        self.channels.stored().div_ceil(CHANNEL_ALIGNMENT)
    }

    /// An image of the same positions with other channels.
    pub fn with_channels(&self, channels: Channels) -> Self {
        Shape::volume(self.batch, self.spatial, channels)
    }

    /// The same shape, stored in these numbers.
    pub fn stored_in(self, storage: Storage) -> Self {
        Shape { storage, ..self }
    }

    /// Pixels (or voxels) of one sample.
    pub fn pixels(&self) -> usize {
        self.spatial.iter().product()
    }

    /// Pixels of all samples.
    pub fn positions(&self) -> usize {
        self.batch * self.pixels()
    }

    /// Values when the channels of all positions stand side by side, without padding.
    pub fn values(&self) -> usize {
        self.positions() * self.channels.count()
    }

    /// Copies values without padding to where they are stored, `stride` elements from pixel to pixel.
    ///
    /// # Panics
    /// If `values` is not as long as [`Shape::values`], which is a bug.
    pub fn scatter<T: Copy + Default>(&self, values: &[T], stored: &mut [T], stride: usize) {
        assert_eq!(values.len(), self.values(), "as many values as the shape {self} has");
        let indices: Vec<usize> = self.channels.stored_indices().collect();
        let stored_channels = self.channels.stored();
        for (position, values) in values.chunks_exact(indices.len()).enumerate() {
            let pixel = &mut stored[position * stride..position * stride + stored_channels];
            pixel.fill(T::default());
            indices.iter().zip(values).for_each(|(&index, &value)| pixel[index] = value);
        }
    }

    /// The inverse of [`Shape::scatter`].
    ///
    /// # Panics
    /// If `values` is not as long as [`Shape::values`], which is a bug.
    pub fn gather<T: Copy>(&self, stored: &[T], stride: usize, values: &mut [T]) {
        assert_eq!(values.len(), self.values(), "as many values as the shape {self} has");
        let indices: Vec<usize> = self.channels.stored_indices().collect();
        for (position, values) in values.chunks_exact_mut(indices.len()).enumerate() {
            let pixel = &stored[position * stride..];
            indices.iter().zip(values).for_each(|(&index, value)| *value = pixel[index]);
        }
    }

    /// Elements when stored densely, padding included.
    pub fn elements(&self) -> usize {
        self.positions() * self.channels.stored()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [depth, height, width] = self.spatial;
        write!(f, "{} x ", self.batch)?;
        if depth > 1 {
            write!(f, "{depth} x ")?;
        }
        write!(f, "{height} x {width} x {}", self.channels.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_padded_and_a_short_lone_one_is_not() {
        let image = Channels::new(1);
        let joined = Channels::concat([&image, &Channels::new(32)]);
        assert_eq!((image.count(), image.stored()), (1, 1));
        assert_eq!((joined.count(), joined.stored(), joined.used()), (33, 40, 40));
        assert_eq!(joined.stored_indices().take(3).collect::<Vec<_>>(), [0, 8, 9]);
        let odd = Channels::concat([&joined, &Channels::new(3)]);
        assert_eq!((odd.stored(), odd.used()), (48, 43));
        assert_eq!(Channels::new(33).used(), 33);
    }
}
