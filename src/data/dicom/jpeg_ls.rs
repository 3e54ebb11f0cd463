//! JPEG-LS pictures of one component (ITU-T T.87), lossless and near-lossless, decoded with every claim checked.
//!
//! Names are the standard's: A, B, C and N are a context's statistics, k the Golomb parameter, J the run lengths.
//! Numbers are wide enough that no stream makes them overflow, since errors beyond RANGE are refused.

/// The picture's `count` samples of `size` bytes, least significant byte first; nothing if the encoded bytes do not
/// make that many.
pub fn decode(encoded: &[u8], count: usize, size: usize) -> Option<Vec<u8>> {
    let Scan { columns, rows, coding, bits } = Scan::find(encoded)?;
    if columns * rows != count || coding.maxval >> (8 * size) != 0 {
        return None;
    }
    let mut decoder = Decoder::new(coding, bits);
    // A column more on each side than the picture has.
    let (mut above, mut line) = (vec![0; columns + 2], vec![0; columns + 2]);
    let mut samples = Vec::new();
    for _ in 0..rows {
        decoder.line(&above, &mut line)?;
        line[1..=columns].iter().for_each(|sample| samples.extend_from_slice(&sample.to_le_bytes()[..size]));
        std::mem::swap(&mut above, &mut line);
    }
    Some(samples)
}

/// A picture's only scan.
struct Scan<'a> {
    columns: usize,
    rows: usize,
    coding: Coding,
    bits: Bits<'a>,
}

impl<'a> Scan<'a> {
    /// Reads the segments up to the scan's bits (annex C).
    fn find(encoded: &'a [u8]) -> Option<Self> {
        let mut rest = encoded.strip_prefix(&[0xff, 0xd8])?;
        let mut frame = None;
        let mut preset = Preset::default();
        loop {
            let ([0xff, marker], after) = rest.split_first_chunk()? else { return None };
            if *marker == 0xff {
                rest = &rest[1..];
                continue;
            }
            let length = usize::from(u16_at(after, 0)?);
            let segment = after.get(2..length)?;
            rest = &after[length..];
            match (marker, segment) {
                // One component, not subsampled in any way that matters.
                (0xf7, &[precision @ 2..=16, _, _, _, _, 1, ..]) => {
                    frame = Some((precision, u16_at(segment, 1)?, u16_at(segment, 3)?));
                }
                (0xf8, &[1, ..]) => preset = Preset::read(&segment[1..])?,
                // Lines between restarts: only none.
                (0xdd, interval) if interval.iter().all(|&byte| byte == 0) => {}
                // No mapping table and no point transform; a single component is not interleaved.
                (0xda, &[1, _, 0, near, _, 0]) => {
                    let (precision, rows, columns) = frame?;
                    let coding = Coding::new(precision.into(), near.into(), preset)?;
                    return Some(Scan { columns: columns.into(), rows: rows.into(), coding, bits: Bits::new(rest) });
                }
                // What applications add, and comments.
                (0xe0..=0xef | 0xfe, _) => {}
                _ => return None,
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Coding parameters as an LSE segment sets them; 0 means the default (C.2.4.1).
#[derive(Default)]
struct Preset {
    maxval: i64,
    thresholds: [i64; 3],
    reset: i64,
}

impl Preset {
    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |index: usize| Some(i64::from(u16_at(bytes, 2 * index)?));
        Some(Preset { maxval: number(0)?, thresholds: [number(1)?, number(2)?, number(3)?], reset: number(4)? })
    }
}

/// What a scan's numbers mean (A.2.1).
struct Coding {
    maxval: i64,
    near: i64,
    thresholds: [i64; 3],
    reset: i64,
    /// Differences that are told apart, and bits for one of them.
    range: i64,
    qbpp: u32,
    /// Bits of the longest code.
    limit: u32,
}

impl Coding {
    fn new(precision: u32, near: i64, preset: Preset) -> Option<Self> {
        let largest = (1 << precision) - 1;
        let or = |value: i64, default: i64| if value == 0 { default } else { value };
        let maxval = or(preset.maxval, largest);
        let mut thresholds = default_thresholds(maxval, near);
        for (threshold, given) in thresholds.iter_mut().zip(preset.thresholds) {
            *threshold = or(given, *threshold);
        }
        let reset = or(preset.reset, 64);
        let [t1, t2, t3] = thresholds;
        let ordered = near < t1 && t1 <= t2 && t2 <= t3 && t3 <= maxval;
        if maxval > largest || near > maxval / 2 || !ordered || !(3..=maxval.max(255)).contains(&reset) {
            return None;
        }
        let range = (maxval + 2 * near) / (2 * near + 1) + 1;
        let bpp = bits_for(maxval + 1).max(2);
        Some(Coding { maxval, near, thresholds, reset, range, qbpp: bits_for(range), limit: 2 * (bpp + bpp.max(8)) })
    }

    /// One of nine regions that a gradient lies in, from -4 to 4 (A.3.3).
    fn region(&self, gradient: i64) -> i64 {
        let magnitude = gradient.abs();
        let beyond = self.thresholds.iter().filter(|&&threshold| magnitude >= threshold).count() as i64;
        gradient.signum() * (beyond + i64::from(magnitude > self.near))
    }

    /// The sample at a quantized error from its prediction (A.4.5).
    fn sample(&self, prediction: i64, error: i64) -> i64 {
        let step = 2 * self.near + 1;
        let mut sample = prediction + error * step;
        if sample < -self.near {
            sample += self.range * step;
        } else if sample > self.maxval + self.near {
            sample -= self.range * step;
        }
        sample.clamp(0, self.maxval)
    }
}

/// T1, T2 and T3 where nothing sets them (C.2.4.1.1).
fn default_thresholds(maxval: i64, near: i64) -> [i64; 3] {
    let mut lowest = near + 1;
    [(2, 3, 3), (3, 7, 5), (4, 21, 7)].map(|(offset, base, slope)| {
        let value = if maxval >= 128 {
            (maxval.min(4095) + 128) / 256 * (base - offset) + offset + slope * near
        } else {
            (base / (256 / (maxval + 1)) + slope * near).max(offset)
        };
        lowest = if (lowest..=maxval).contains(&value) { value } else { lowest };
        lowest
    })
}

/// Bits that tell so many values apart.
fn bits_for(values: i64) -> u32 {
    64 - (values - 1).leading_zeros()
}

/// The statistics of samples in like surroundings: magnitudes and sum of the errors, correction, count. In a run's
/// context B counts the negative errors.
#[derive(Clone, Copy)]
struct Context {
    a: i64,
    b: i64,
    c: i64,
    n: i64,
}

impl Context {
    /// The Golomb parameter for errors that add up to `a` in magnitude.
    fn k(&self, a: i64) -> u32 {
        let mut k = 0;
        while self.n << k < a {
            k += 1;
        }
        k
    }

    /// Learns of an error; all but C (A.6.1).
    fn update(&mut self, magnitude: i64, b: i64, reset: i64) {
        self.a += magnitude;
        self.b += b;
        if self.n == reset {
            self.a >>= 1;
            self.b = if self.b >= 0 { self.b >> 1 } else { -((1 - self.b) >> 1) };
            self.n >>= 1;
        }
        self.n += 1;
    }

    /// Moves the correction C so that errors average nothing (A.6.2).
    fn correct(&mut self) {
        if self.b <= -self.n {
            self.b = (self.b + self.n).max(1 - self.n);
            self.c = (self.c - 1).max(-128);
        } else if self.b > 0 {
            self.b = (self.b - self.n).min(0);
            self.c = (self.c + 1).min(127);
        }
    }
}

/// Powers of two that run lengths are written in.
const J: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Decoder<'a> {
    coding: Coding,
    bits: Bits<'a>,
    contexts: [Context; 365],
    /// Of samples that end a run, where left and upper neighbour differ or are alike.
    run_contexts: [Context; 2],
    run_index: usize,
}

impl<'a> Decoder<'a> {
    fn new(coding: Coding, bits: Bits<'a>) -> Self {
        let context = Context { a: ((coding.range + 32) / 64).max(2), b: 0, c: 0, n: 1 };
        Decoder { coding, bits, contexts: [context; 365], run_contexts: [context; 2], run_index: 0 }
    }

    /// Decodes a line, which like the one `above` has a column more on each side.
    fn line(&mut self, above: &[i64], line: &mut [i64]) -> Option<()> {
        let columns = line.len() - 2;
        line[0] = above[1];
        let mut x = 1;
        while x <= columns {
            let [left, up_left, up, up_right] = [line[x - 1], above[x - 1], above[x], above[x + 1]];
            let gradients = [up_right - up, up - up_left, up_left - left];
            if gradients.iter().all(|gradient| gradient.abs() <= self.coding.near) {
                x = self.run(above, line, x)?;
            } else {
                let [q1, q2, q3] = gradients.map(|gradient| self.coding.region(gradient));
                // The median of left, up and left + up - up_left.
                let median = (left + up - up_left).clamp(left.min(up), left.max(up));
                line[x] = self.regular(81 * q1 + 9 * q2 + q3, median)?;
                x += 1;
            }
        }
        line[columns + 1] = line[columns];
        Some(())
    }

    /// A sample whose surroundings are `context`, below 0 if they are those of its opposite turned around (A.4 to A.6).
    fn regular(&mut self, context: i64, median: i64) -> Option<i64> {
        let (sign, index) = (context.signum(), context.unsigned_abs() as usize);
        let mut context = self.contexts[index];
        let prediction = (median + sign * context.c).clamp(0, self.coding.maxval);
        let k = context.k(context.a);
        let code = self.golomb(k, self.coding.limit)?;
        // Even codes are errors of 0 and up, odd ones those below; the other way around where errors are mostly below.
        let turned = self.coding.near == 0 && k == 0 && 2 * context.b <= -context.n;
        let half = code >> 1;
        let error = if (code & 1 == 1) == turned { half } else { -half - 1 };
        context.update(error.abs(), error * (2 * self.coding.near + 1), self.coding.reset);
        context.correct();
        self.contexts[index] = context;
        Some(self.coding.sample(prediction, sign * error))
    }

    /// Fills a run from column `x` on, and the sample that ends it if the line does not; returns the column after
    /// (A.7).
    fn run(&mut self, above: &[i64], line: &mut [i64], mut x: usize) -> Option<usize> {
        let (value, end) = (line[x - 1], line.len() - 1);
        while self.bits.read(1)? == 1 {
            let whole = 1 << J[self.run_index];
            let filled = whole.min(end - x);
            line[x..x + filled].fill(value);
            x += filled;
            if filled == whole {
                self.run_index = (self.run_index + 1).min(J.len() - 1);
            }
            if x == end {
                return Some(x);
            }
        }
        let filled = self.bits.read(J[self.run_index])? as usize;
        line[..end].get_mut(x..x + filled)?.fill(value);
        x += filled;
        *line[..end].get_mut(x)? = self.run_end(value, above[x])?;
        self.run_index = self.run_index.saturating_sub(1);
        Some(x + 1)
    }

    /// The sample that ends a run of `left`, below `up` (A.7.2).
    fn run_end(&mut self, left: i64, up: i64) -> Option<i64> {
        let alike = i64::from((left - up).abs() <= self.coding.near);
        let mut context = self.run_contexts[alike as usize];
        let k = context.k(context.a + alike * (context.n >> 1));
        let code = self.golomb(k, self.coding.limit - J[self.run_index] - 1)?;
        let magnitude = (code + alike + 1) >> 1;
        let mostly_negative = k != 0 || 2 * context.b >= context.n;
        let negative = ((code + alike) & 1 == 1) == mostly_negative && magnitude > 0;
        context.update((code + 1 - alike) >> 1, i64::from(negative), self.coding.reset);
        self.run_contexts[alike as usize] = context;
        let error = if negative { -magnitude } else { magnitude };
        let (prediction, sign) = if alike == 1 { (left, 1) } else { (up, (up - left).signum()) };
        Some(self.coding.sample(prediction, sign * error))
    }

    /// A Golomb code of at most `limit` bits (A.5.3).
    fn golomb(&mut self, k: u32, limit: u32) -> Option<i64> {
        let longest = limit - self.coding.qbpp - 1;
        let zeros = self.bits.zeros(longest)?;
        let code = if zeros < longest {
            (i64::from(zeros) << k) + self.bits.read(k)?
        } else {
            self.bits.read(self.coding.qbpp)? + 1
        };
        (code <= self.coding.range).then_some(code)
    }
}

/// A scan's bits, without those stuffed in behind each byte of ones, up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    after_ones: bool,
    /// The next bits, from the top, and how many.
    cache: u64,
    cached: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Bits { bytes, after_ones: false, cache: 0, cached: 0 }
    }

    fn fill(&mut self) {
        while self.cached <= 56
            && let Some((&byte, rest)) = self.bytes.split_first()
        {
            if byte == 0xff && rest.first().is_none_or(|&next| next >= 0x80) {
                return;
            }
            self.cached += if self.after_ones { 7 } else { 8 };
            self.cache |= u64::from(byte) << (64 - self.cached);
            self.after_ones = byte == 0xff;
            self.bytes = rest;
        }
    }

    /// The next `count` bits, at most 56, as a number.
    fn read(&mut self, count: u32) -> Option<i64> {
        if self.cached < count {
            self.fill();
        }
        self.cached = self.cached.checked_sub(count)?;
        let value = self.cache.checked_shr(64 - count).unwrap_or(0);
        self.cache <<= count;
        Some(value as i64)
    }

    /// Counts zeros up to the next one, which is taken as well; nothing if they are more than `most`.
    fn zeros(&mut self, most: u32) -> Option<u32> {
        let mut count = 0;
        loop {
            if self.cached == 0 {
                self.fill();
            }
            let zeros = self.cache.leading_zeros().min(self.cached);
            count += zeros;
            if count > most || self.cached == 0 {
                return None;
            }
            if zeros < self.cached {
                self.cache = self.cache << zeros << 1;
                self.cached -= zeros + 1;
                return Some(count);
            }
            (self.cache, self.cached) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::decode;

    /// The example of annex H.3, and what follows its first two bytes, which begin every picture.
    const PIXELS: [u8; 16] = [0, 0, 90, 74, 68, 50, 43, 205, 64, 145, 145, 145, 100, 145, 145, 145];
    const REST: [u8; 51] = [
        0xff, 0xf7, 0, 11, 8, 0, 4, 0, 4, 1, 1, 0x11, 0, 0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0, 0xc0, 0, 0, 0x6c, 0x80,
        0x20, 0x8e, 1, 0xc0, 0, 0, 0x57, 0x40, 0, 0, 0x6e, 0xe6, 0, 0, 1, 0xbc, 0x18, 0, 0, 5, 0xd8, 0, 0,
    ];

    fn decoded(segment: &[u8], end: &[u8]) -> Option<Vec<u8>> {
        decode(&[&[0xff, 0xd8], segment, &REST, end].concat(), PIXELS.len(), 1)
    }

    #[test]
    fn the_standards_example() {
        let end = [0x91, 0x60, 0xff, 0xd9];
        assert_eq!(decoded(&[], &end), Some(PIXELS.to_vec()));
        assert_eq!(decoded(&[], &[0x91, 0xff, 0xd9]), None);
        // Parameters that are the defaults, by name and as zeros; and others.
        let preset = |[t1, t3, reset]: [u8; 3]| [0xff, 0xff, 0xf8, 0, 13, 1, 0, 255, 0, t1, 0, 7, 0, t3, 0, reset];
        assert_eq!(decoded(&preset([3, 21, 64]), &end), Some(PIXELS.to_vec()));
        assert_eq!(decoded(&preset([0, 0, 0]), &end), Some(PIXELS.to_vec()));
        assert_ne!(decoded(&preset([3, 70, 64]), &end), Some(PIXELS.to_vec()));
        assert_eq!(decoded(&preset([8, 21, 64]), &end), None);
    }
}
