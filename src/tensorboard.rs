//! Event files that TensorBoard reads: scalars and pictures, as they come.
//!
//! An event file is a TFRecord file: each record is its length, the length's checksum, the bytes and their
//! checksum; the checksums are CRC-32C, masked. Each record is an `Event` message, the first says the version.

use crate::protobuf::Message;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of events that grows.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

/// `SessionLog.START`: what earlier files say of this step and later ones is void.
const START: i64 = 1;

/// Channels of a picture: red, green and blue.
const RGB: i64 = 3;

impl EventWriter {
    /// A new file in `folder` (made if absent) whose first step is `first_step`. A run that is resumed goes on in a
    /// file of its own, which takes back what earlier ones say of its steps.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let seconds = now().as_secs();
        let name = |number: u32| format!("events.out.tfevents.{seconds:010}.rarunet-cuda.{number}");
        let open = |number| OpenOptions::new().write(true).create_new(true).open(folder.join(name(number)));
        // Two runs of one second do not share a file.
        let (path, file) = (0..1000)
            .find_map(|number| Some((folder.join(name(number)), open(number).ok()?)))
            .ok_or_else(|| Error::file(folder, "no event file can be made in it"))?;
        let mut writer = EventWriter { path, file };
        writer.event(0, |event| event.text(3, "brain.Event:2"))?;
        writer.event(first_step, |event| event.message(7, Message::new().int(1, START)))?;
        Ok(writer)
    }

    /// Where the events go.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A number of a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        self.value(step, Message::new().text(1, tag).float(2, value as f32))
    }

    /// A picture of a step: the bytes of a PNG.
    ///
    /// # Errors
    /// If they are no PNG's, or the file cannot be written.
    pub fn image(&mut self, step: u64, tag: &str, png: &[u8]) -> Result<()> {
        // Width and height stand in the first chunk, after the signature, its length and its name.
        let Some(&[w0, w1, w2, w3, h0, h1, h2, h3]) = png.get(16..24) else {
            return Err(Error::Invalid(format!("{tag}: this is no picture")));
        };
        let [width, height] = [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(|bytes| i64::from(u32::from_be_bytes(bytes)));
        let image = Message::new().int(1, height).int(2, width).int(3, RGB).bytes(4, png);
        self.value(step, Message::new().text(1, tag).message(4, image))
    }

    fn value(&mut self, step: u64, value: Message) -> Result<()> {
        self.event(step, |event| event.message(5, Message::new().message(1, value)))
    }

    fn event(&mut self, step: u64, fill: impl FnOnce(Message) -> Message) -> Result<()> {
        let event = fill(Message::new().double(1, now().as_secs_f64()).int(2, step as i64));
        self.file.write_all(&record(&event.into_bytes())).map_err(Error::io(&self.path))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A TFRecord: length, masked checksum of the length, bytes, masked checksum of the bytes.
pub fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), bytes, &masked(bytes)].concat()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli, polynomial 0x1EDC6F41, bits reversed).
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// What eight steps do to each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
