//! Files in and out: bytes that are decompressed as they are read, and files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

/// Deflate makes at most 1032 bytes of one, so no file can hold more than this many times its size.
const LARGEST_RATIO: u64 = 1032;

/// A file being read, decompressed on the way if it is gzip (told by its first bytes, not its name).
pub struct Input {
    reader: Box<dyn Read + Send>,
    /// The most bytes that can come out of it.
    pub most: u64,
}

impl Input {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a regular file"));
        }
        let mut file = BufReader::with_capacity(1 << 16, file);
        let start = io::BufRead::fill_buf(&mut file).map_err(Error::io(path))?;
        Ok(match start.starts_with(&[0x1f, 0x8b]) {
            true => Input {
                reader: Box::new(MultiGzDecoder::new(file)),
                most: metadata.len().saturating_mul(LARGEST_RATIO),
            },
            false => Input { reader: Box::new(file), most: metadata.len() },
        })
    }

    /// Fills as much of `buffer` as the file has bytes for, and says how many those were.
    pub fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads and drops `count` bytes, or as many as there are, and says how many those were.
    pub fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.reader).take(count), &mut io::sink())
    }
}

/// Writes a file so that `path` never holds half of it: `fill` writes to a temporary name in the
/// same folder (made if absent), which is synced and then renamed.
///
/// # Errors
/// Whatever `fill` or the operating system says; the temporary file is then gone.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not a name for a file"))?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary: PathBuf = folder.join(temporary);

    let write = || -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 16, File::create(&temporary)?);
        fill(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), source }
    })
}

/// The endings of the files that hold a scan on their own.
const SCAN_ENDINGS: [&str; 3] = [".nii.gz", ".nii", ".hdr"];

/// A scan's name: its file's, without its ending and nnU-Net's channel number.
pub fn case_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = SCAN_ENDINGS.iter().find(|ending| ends_with(path, ending)).map_or(0, |ending| ending.len());
    let stem = &name[..name.len() - ending];
    stem.strip_suffix("_0000").unwrap_or(stem).to_owned()
}

/// The scans in a folder, in the order of their names.
///
/// # Errors
/// If the folder cannot be read or holds none.
pub fn scans_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut scans = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_file() && SCAN_ENDINGS.iter().any(|ending| ends_with(&path, ending)) {
            scans.push(path);
        }
    }
    scans.sort();
    match scans.is_empty() {
        false => Ok(scans),
        true => Err(Error::file(folder, format!("holds no scan ({})", SCAN_ENDINGS.join(", ")))),
    }
}

/// Whether the file's name ends with `ending` (given in lower case), whatever the name's case.
pub(crate) fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().ends_with(ending))
}
