//! DICOM's run-length encoding (PS3.5, annex G), decoded with every length checked.

/// The picture's `count` samples of `size` bytes, least significant byte first; nothing if the
/// encoded bytes do not make that many.
///
/// A 64-byte header says where each segment begins; the segments hold the most significant byte of
/// every sample, then the next one.
pub fn decode(encoded: &[u8], count: usize, size: usize) -> Option<Vec<u8>> {
    // A pair of bytes makes at most 128.
    if count > encoded.len() * 64 {
        return None;
    }
    let word =
        |index: usize| Some(u32::from_le_bytes(encoded.get(4 * index..4 * index + 4)?.try_into().ok()?) as usize);
    if word(0)? != size {
        return None;
    }
    let mut samples = vec![0; count * size];
    for segment in 0..size {
        let start = word(1 + segment)?;
        let end = if segment + 1 < size { word(2 + segment)? } else { encoded.len() };
        let mut bytes = encoded.get(start.max(64)..end)?;
        let mut places = samples.iter_mut().skip(size - 1 - segment).step_by(size);
        let mut left = count;
        while left > 0 {
            let (&code, rest) = bytes.split_first()?;
            let (run, used) = match code {
                0..=127 => (rest.get(..=usize::from(code))?.to_vec(), 1 + usize::from(code)),
                128 => (Vec::new(), 0),
                129..=255 => (vec![*rest.first()?; 257 - usize::from(code)], 1),
            };
            bytes = &rest[used..];
            left = left.saturating_sub(run.len());
            places.by_ref().zip(run).for_each(|(place, byte)| *place = byte);
        }
    }
    Some(samples)
}
