//! What a compressed picture says of itself, read before a decoder believes it and sets memory aside.

/// What a JPEG or JPEG 2000 picture claims.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    pub columns: u32,
    pub rows: u32,
    /// Grey values, as one plain picture: nothing that takes more memory than its pixels.
    pub plain: bool,
}

/// Pixels up to which a picture may be as small as it likes: slices of nothing but air are.
const SMALL: usize = 1 << 20;

/// Pixels that a larger picture may have for each of its bytes; CT slices have about two.
const MOST_FOR_A_BYTE: usize = 64;

/// Tiles that a JPEG 2000 picture may have; a CT slice has one.
const MOST_TILES: u64 = 1024;

/// Whether `count` pixels may be in `bytes` bytes.
pub fn is_believable(count: usize, bytes: usize) -> bool {
    count <= SMALL || count / MOST_FOR_A_BYTE <= bytes
}

/// What a JPEG, JPEG-LS or JPEG 2000 picture claims; nothing if it is none of them.
pub fn claim(picture: &[u8]) -> Option<Claim> {
    let bytes = Bytes(picture);
    match picture {
        [0xff, 0x4f, 0xff, 0x51, ..] => jpeg_2000(bytes),
        [0xff, 0xd8, ..] => jpeg(bytes),
        _ => None,
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u32> {
        Some(u32::from(u16::from_be_bytes(self.0.get(at..at + 2)?.try_into().ok()?)))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }
}

/// The SIZ segment (ISO 15444-1, A.5.1), which must come first.
fn jpeg_2000(bytes: Bytes) -> Option<Claim> {
    let pair = |at: usize| Some([bytes.u32(at)?, bytes.u32(at + 4)?]);
    let (far, near, tile, tile_near) = (pair(8)?, pair(16)?, pair(24)?, pair(32)?);
    let sides = [far[0].checked_sub(near[0])?, far[1].checked_sub(near[1])?];
    let tiles = |axis: usize| Some(u64::from(far[axis].checked_sub(tile_near[axis])?).div_ceil(tile[axis].into()));
    let few_tiles = !tile.contains(&0) && tiles(0)?.checked_mul(tiles(1)?)? <= MOST_TILES;
    // One component, not subsampled.
    let grey = bytes.u16(40)? == 1 && (bytes.u8(43)?, bytes.u8(44)?) == (1, 1);
    Some(Claim { columns: sides[0], rows: sides[1], plain: few_tiles && grey })
}

/// The frame header (ITU-T T.81, B.2.2), behind segments that are skipped.
fn jpeg(bytes: Bytes) -> Option<Claim> {
    let mut at = 2;
    loop {
        let marker = bytes.u16(at)?;
        match marker {
            // A fill byte.
            0xffff => {
                at += 1;
                continue;
            }
            0xffc4 | 0xffc8 | 0xffcc => {}
            0xffc0..=0xffcf | 0xfff7 => {
                return Some(Claim {
                    columns: bytes.u16(at + 7)?,
                    rows: bytes.u16(at + 5)?,
                    plain: bytes.u8(at + 9)? == 1,
                });
            }
            // Segments with a length; others do not belong before the frame.
            0xffdb..=0xfffe => {}
            _ => return None,
        }
        at += 2 + bytes.u16(at + 2)? as usize;
    }
}
