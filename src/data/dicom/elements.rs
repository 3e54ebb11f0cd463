//! A look at a DICOM file's elements before the parser sees them.
//!
//! The parser sets memory aside for as many bytes as an element claims, and follows sequences
//! however deep they are. So every claim is first held against the bytes there are.

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags, uids};

/// Where the first element lies: after 128 free bytes and "DICM".
pub const PREAMBLE: usize = 132;

/// What surrounds the parts of a sequence.
const ITEM: Tag = Tag(0xfffe, 0xe000);
const ITEM_END: Tag = Tag(0xfffe, 0xe00d);
const SEQUENCE_END: Tag = Tag(0xfffe, 0xe0dd);

/// The one transfer syntax in which numbers are big-endian; retired, but in archives.
const EXPLICIT_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// Explicit little-endian elements, deflated as a whole.
pub const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

/// The length of an element that ends with a delimiter.
const UNDEFINED: u32 = u32::MAX;

/// Sequences within sequences that are followed; real files have three or four.
const DEEPEST: usize = 32;

/// Whether `start`, a file's first bytes, are those of a DICOM file.
pub fn recognises(start: &[u8]) -> bool {
    start.get(PREAMBLE - 4..PREAMBLE) == Some(b"DICM")
}

/// Whether every element of the file lies within it and is of a length that its type can have.
pub fn fit(bytes: &[u8]) -> bool {
    let mut walk = Walk { bytes, at: PREAMBLE, big: false };
    let Some(syntax) = walk.meta() else { return false };
    walk.big = syntax == EXPLICIT_BIG_ENDIAN;
    let implicit = syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN;
    walk.elements(bytes.len(), implicit, false, 0).is_some()
}

/// Whether the file's elements are deflated.
pub fn is_deflated(bytes: &[u8]) -> bool {
    Walk { bytes, at: PREAMBLE, big: false }.meta().is_some_and(|syntax| syntax == DEFLATED)
}

/// What the length of a value of this type is a multiple of.
fn bytes_of_a_number(vr: VR) -> u32 {
    match vr {
        VR::US | VR::SS | VR::OW => 2,
        VR::AT | VR::UL | VR::SL | VR::FL | VR::OF | VR::OL => 4,
        VR::UV | VR::SV | VR::OV | VR::FD | VR::OD => 8,
        _ => 1,
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Big-endian.
    big: bool,
}

impl Walk<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..self.at + N)?.try_into().ok()?;
        self.at += N;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take()?;
        Some(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&mut self) -> Option<u32> {
        let bytes = self.take()?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn tag(&mut self) -> Option<Tag> {
        Some(Tag(self.u16()?, self.u16()?))
    }

    /// Where a value of `length` bytes that starts here ends, if that is not after `end`.
    fn value_end(&self, length: u32, end: usize) -> Option<usize> {
        self.at.checked_add(length as usize).filter(|&value_end| value_end <= end)
    }

    /// An explicit element's type and the length of its value.
    fn explicit(&mut self) -> Option<(VR, u32)> {
        use VR::*;
        let vr = VR::from_binary(self.take()?).unwrap_or(UN);
        let short = matches!(
            vr,
            AE | AS | AT | CS | DA | DS | DT | FL | FD | IS | LO | LT | PN | SH | SL | SS | ST | TM | UI | UL | US
        );
        if short {
            return Some((vr, u32::from(self.u16()?)));
        }
        self.u16()?;
        Some((vr, self.u32()?))
    }

    /// The file meta information, which begins with its length: the transfer syntax.
    fn meta(&mut self) -> Option<String> {
        let (tag, (vr, length)) = (self.tag()?, self.explicit()?);
        if (tag, vr, length) != (tags::FILE_META_INFORMATION_GROUP_LENGTH, VR::UL, 4) {
            return None;
        }
        let length = self.u32()?;
        let end = self.value_end(length, self.bytes.len())?;
        let mut syntax = None;
        while self.at < end {
            let tag = self.tag()?;
            let (_, length) = self.explicit()?;
            // The parser follows the last element even if it reaches beyond the length.
            let value_end = self.value_end(length, self.bytes.len())?;
            if tag == tags::TRANSFER_SYNTAX_UID {
                let text = String::from_utf8_lossy(&self.bytes[self.at..value_end]);
                syntax = Some(text.trim_end_matches(['\0', ' ']).to_owned());
            }
            self.at = value_end;
        }
        syntax
    }

    /// Elements, or the items of a sequence, up to `end`, or to a delimiter if they are `delimited`.
    fn elements(&mut self, end: usize, implicit: bool, delimited: bool, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        while self.at < end {
            let tag = self.tag()?;
            if tag == ITEM_END || tag == SEQUENCE_END {
                self.u32()?;
                if delimited {
                    return Some(());
                }
                continue;
            }
            let (vr, length) = match (tag == ITEM, implicit) {
                (true, _) => (VR::SQ, self.u32()?),
                (false, false) => self.explicit()?,
                (false, true) => {
                    let known = StandardDataDictionary.by_tag(tag).map(|entry| entry.vr().relaxed());
                    (known.unwrap_or(VR::UN), self.u32()?)
                }
            };
            if length == UNDEFINED {
                match tag == tags::PIXEL_DATA {
                    true => self.fragments(end)?,
                    // A sequence of unknown type is implicit whatever surrounds it (PS3.5, 6.2.2).
                    false => self.elements(end, implicit || vr == VR::UN, true, depth + 1)?,
                }
            } else {
                let value_end = self.value_end(length, end)?;
                // The parser reads whole numbers only, and then takes what is left of the value for the next element.
                if length % bytes_of_a_number(vr) != 0 {
                    return None;
                }
                if vr == VR::SQ {
                    self.elements(value_end, implicit, false, depth + 1)?;
                }
                self.at = value_end;
            }
        }
        Some(())
    }

    /// Compressed pixel data: items of plain bytes up to the delimiter.
    fn fragments(&mut self, end: usize) -> Option<()> {
        loop {
            let (tag, length) = (self.tag()?, self.u32()?);
            match tag {
                ITEM => self.at = self.value_end(length, end)?,
                SEQUENCE_END => return Some(()),
                _ => return None,
            }
        }
    }
}
