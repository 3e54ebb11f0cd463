//! Preprocessed slices in files that are mapped into memory, so that training needs no more memory for more data.
//!
//! A case is one file, named by a hash of everything its slices follow from: the bytes of image and mask,
//! the settings and this program's version. The bytes and not their times, so that a changed file is never
//! taken for the old one, and data that is moved, copied or unpacked anew is still known; reading compressed
//! files once costs far less than decompressing them. Files are whole or not there, since they appear by a
//! rename; one that was damaged later is found out by its checksum and made anew. Whatever is in the
//! folder may be deleted at any time.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use flate2::Crc;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::dataset::{Case, Dataset};
use super::file::{Input, write_atomically};
use super::labels::Labels;
use super::open;
use super::slices::{Pixels, PreparedScan, SlicePixels};
use crate::preprocessing::Preprocessing;
use crate::{Error, Result};

/// Raised whenever the same inputs and settings would give other slices.
const VERSION: u32 = 1;

/// What a file begins with; the number tells a machine of the other byte order that the file is not for it.
const MAGIC: &[u8; 8] = b"rarslice";
const BYTE_ORDER: u32 = 0x0102_0304;

/// Bytes before the first slice: magic, byte order, size, slices, 0, key.
const HEADER: usize = 56;

/// The end of the files' names.
const ENDING: &str = "slices";

/// A file that no run has used for this long is removed.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Slices that are made before they are written.
const BLOCK: usize = 32;

type Key = [u8; 32];

/// A folder of preprocessed slices, which several runs may share at the same time.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    reused: AtomicUsize,
    made: AtomicUsize,
}

impl Cache {
    /// A cache in `folder`, which is made when it is first needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: folder.into(), reused: AtomicUsize::new(0), made: AtomicUsize::new(0) }
    }

    /// The user's own cache: `rarunet-cuda` in `$XDG_CACHE_HOME`, `%LOCALAPPDATA%` or `~/.cache`.
    ///
    /// # Errors
    /// If none of these is known.
    pub fn of_user() -> Result<Self> {
        let folder = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = folder("XDG_CACHE_HOME")
            .or_else(|| folder("LOCALAPPDATA"))
            .or_else(|| folder("HOME").map(|home| home.join(".cache")));
        base.map(|base| Cache::new(base.join("rarunet-cuda")))
            .ok_or_else(|| Error::Invalid("no folder for cached slices: $HOME is not set; give --cache DIR".to_owned()))
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Cases that were found in the cache so far, and cases that were made.
    pub fn counts(&self) -> [usize; 2] {
        [&self.reused, &self.made].map(|count| count.load(Ordering::Relaxed))
    }

    /// The slices of a case, read from its file, which is made if it is absent or damaged.
    pub(super) fn slices(
        &self,
        dataset: &Dataset,
        case: &Case,
        preprocessing: Preprocessing,
        foreground: &Labels,
    ) -> Result<Vec<SlicePixels>> {
        let key = key(dataset, case, preprocessing, foreground)?;
        let path = self.folder.join(format!("{}.{ENDING}", hexadecimal(&key)));
        if let Some(slices) = read(&path, &key, preprocessing.size) {
            self.reused.fetch_add(1, Ordering::Relaxed);
            return Ok(slices);
        }
        let scan = PreparedScan::load(dataset, case, preprocessing, foreground)?;
        // The file must hold what its name says.
        if self::key(dataset, case, preprocessing, foreground)? != key {
            return Err(Error::file(&case.image, "it or its mask changed while it was read: start again"));
        }
        write_atomically(&path, |file| write(file, &key, preprocessing.size, &scan))
            .map_err(|error| Error::Invalid(format!("{error} (cached slices; --cache DIR puts them elsewhere)")))?;
        drop(scan);
        self.made.fetch_add(1, Ordering::Relaxed);
        read(&path, &key, preprocessing.size)
            .ok_or_else(|| Error::file(&path, "does not hold what was just written: is the disk sound?"))
    }

    /// Removes files, whole or begun, that no run has used for a month.
    pub(super) fn remove_unused(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = name.ends_with(&format!(".{ENDING}"))
                || name.contains(&format!(".{ENDING}.")) && name.ends_with(".partial");
            let unused = || path.metadata().ok()?.modified().ok()?.elapsed().ok().filter(|&age| age > KEPT);
            if ours && unused().is_some() {
                // Another run may have removed it first.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

/// The hash of everything that a case's slices follow from.
fn key(dataset: &Dataset, case: &Case, preprocessing: Preprocessing, foreground: &Labels) -> Result<Key> {
    let mut hash = Sha256::new();
    let version = env!("CARGO_PKG_VERSION");
    hash.update(format!("{version} {VERSION} {preprocessing:?} {foreground:?} {}\n", dataset.meaning()));
    for path in [&case.image, &case.mask] {
        for part in open(path)?.files() {
            hash.update(content_hash(part)?);
        }
        hash.update([0]);
    }
    Ok(hash.finalize().into())
}

fn content_hash(path: &Path) -> Result<Key> {
    let mut file = Input::plain(path)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.fill(&mut block).map_err(Error::io(path))? {
            0 => return Ok(hash.finalize().into()),
            filled => hash.update(&block[..filled]),
        }
    }
}

fn hexadecimal(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a slice: its image, then its mask.
fn slice_bytes(size: usize) -> usize {
    size * size * (size_of::<f32>() + size_of::<u8>())
}

/// Writes header, slices, for each slice whether it has foreground, and the checksum of all that.
fn write(file: &mut impl Write, key: &Key, size: usize, scan: &PreparedScan) -> io::Result<()> {
    let depth = scan.depth();
    let mut file = Summing { file, checksum: Crc::new() };
    file.write_all(MAGIC)?;
    for number in [BYTE_ORDER, size as u32, depth as u32, 0] {
        file.write_all(&number.to_ne_bytes())?;
    }
    file.write_all(key)?;
    let mut foreground = Vec::with_capacity(depth);
    for first in (0..depth).step_by(BLOCK) {
        for slice in scan.slices(first..depth.min(first + BLOCK)) {
            file.write_all(bytemuck::cast_slice(&slice.image))?;
            file.write_all(&slice.mask)?;
            foreground.push(u8::from(slice.has_foreground));
        }
    }
    file.write_all(&foreground)?;
    let checksum = file.checksum.sum();
    file.write_all(&checksum.to_ne_bytes())
}

/// The slices of a file; nothing if it is absent, of another key or damaged.
fn read(path: &Path, key: &Key, size: usize) -> Option<Vec<SlicePixels>> {
    let file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let depth = checked_depth(&file, length, key, size)?;
    // A run that uses it keeps it; on a read-only disk it stays as it is.
    let _ = file.set_modified(SystemTime::now());
    // SAFETY: files of the cache are never written to once they have their names; they are replaced by renaming
    // and removed by unlinking, which leave a mapping as it is.
    let mapped = Arc::new(unsafe { Mmap::map(&file) }.ok()?);
    let pixels = size * size;
    let slice = |index: usize| {
        let start = HEADER + index * slice_bytes(size);
        let middle = start + pixels * size_of::<f32>();
        SlicePixels {
            image: Pixels::mapped(&mapped, start..middle),
            mask: Pixels::mapped(&mapped, middle..middle + pixels),
            has_foreground: mapped[HEADER + depth * slice_bytes(size) + index] == 1,
        }
    };
    Some((0..depth).map(slice).collect())
}

/// Reads a whole file, and says how many slices it holds if header, length and checksum are right.
fn checked_depth(file: &File, length: u64, key: &Key, size: usize) -> Option<usize> {
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).ok()?;
    let number = |index: usize| {
        let start = MAGIC.len() + 4 * index;
        header[start..start + 4].try_into().map(u32::from_ne_bytes).ok()
    };
    let depth = number(2)? as usize;
    let expected = HEADER as u64 + depth as u64 * (slice_bytes(size) as u64 + 1) + 4;
    if &header[..8] != MAGIC
        || (number(0)?, number(1)?, number(3)?) != (BYTE_ORDER, size as u32, 0)
        || &header[24..] != key
        || length != expected
    {
        return None;
    }
    let mut sum = Summing { file: io::sink(), checksum: Crc::new() };
    sum.write_all(&header).ok()?;
    io::copy(&mut (&mut reader).take(length - HEADER as u64 - 4), &mut sum).ok()?;
    let mut checksum = [0; 4];
    reader.read_exact(&mut checksum).ok()?;
    (sum.checksum.sum() == u32::from_ne_bytes(checksum)).then_some(depth)
}

/// A writer that keeps the checksum of what goes through it.
struct Summing<W> {
    file: W,
    checksum: Crc,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.checksum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
